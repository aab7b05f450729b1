"""The arithmetic of a matrix with a low-rank change beside it, forward and backward, in as few buffers as it takes.

    y = x W' + b + s (x A') B'                       t = x A'
    dx = dy W + s (dy B) A                           v = dy B
    dA = s v' x,   dB = s dy' t,   dW = dy' x,   db = sum dy

(LoRA, arXiv:2106.09685.) The change is added into the buffer that the matrix product has made, so it costs its own few
operations and no new memory: on a processor most of the price of PEFT's own way is memory taken and given back.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, cast

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from tunesmith.models.device import autocasts, product_type
from tunesmith.models.fast import WHOLE
from tunesmith.models.whole import Added, Rounded


class Matrix(Protocol):
    """A frozen matrix W [out, in] that is no tensor."""

    def read(self, x: Tensor) -> Rounded | None:
        """What products with x, float32 [N, in], begin with, the same for all such matrices; None for nothing."""
        ...

    def forward(self, x: Tensor, added: Added | None = None, read: Rounded | None = None) -> Tensor:
        """x W', float32 [N, in] to [N, out], with another product added; read: of x, where it is known."""
        ...

    def backward(self, dy: Tensor, added: Added | None = None, into: Tensor | None = None) -> Tensor:
        """dy W, float32 [N, out] to [N, in], with another product added, itself added to `into`."""
        ...


class Affine(NamedTuple):
    """What a layer computes. weight W [out, in], or `matrix`; bias b [out]; down A [r, in]; up B [out, r]; scale s."""

    weight: Tensor | None
    bias: Tensor | None = None
    down: Tensor | None = None
    up: Tensor | None = None
    scale: float = 1.0
    matrix: Matrix | None = None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """What autograd is told of."""
        return self[:4]

    @property
    def rest(self) -> tuple[float, Matrix | None]:
        """What it is not told of."""
        return self[4:]

    def read(self, x: Tensor) -> Rounded | None:
        """What layers over matrices that are no tensors make of x [N, in] first; None where there is nothing."""
        return None if self.matrix is None else self.matrix.read(x)

    def forward(self, x: Tensor, read: Rounded | None = None) -> tuple[Tensor, Tensor | None]:
        """x [N, in] to y [N, out], and t [N, r] where there is a change; read: what another layer has read of x."""
        if self.down is None or self.up is None:
            return self._product(x, None, read), None
        t = x @ self.down.t()
        return self._product(x, Added(t, self.up.t(), self.scale), read), t

    def backward(self, dy: Tensor, into: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """dy [N, out] to dx [N, in], added to `into` where that is given, and v [N, r] where there is a change."""
        if self.down is None or self.up is None:
            return self._product_back(dy, None, into), None
        v = dy @ self.up
        return self._product_back(dy, Added(v, self.down, self.scale), into), v

    def _product(self, x: Tensor, added: Added | None, read: Rounded | None) -> Tensor:
        if self.matrix is not None:
            y = self.matrix.forward(x, added, read)
            return y if self.bias is None else y.add_(self.bias)
        weight = cast(Tensor, self.weight)
        y = x @ weight.t() if self.bias is None else torch.addmm(self.bias, x, weight.t())
        return y if added is None else added.to(y)

    def _product_back(self, dy: Tensor, added: Added | None, into: Tensor | None) -> Tensor:
        if self.matrix is not None:
            return self.matrix.backward(dy, added, into)
        weight = cast(Tensor, self.weight)
        dx = dy @ weight if into is None else into.addmm_(dy, weight)
        return dx if added is None else added.to(dx)

    def learned(
        self, needs: tuple[bool, ...], x: Tensor, dy: Tensor, t: Tensor | None, v: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """The gradients of `tensors`, None for those that `needs` leaves out; v is found where it is None."""
        weight, bias, down, up = needs
        if down and v is None and self.up is not None:
            v = dy @ self.up
        return (
            dy.t() @ x if weight else None,
            dy.sum(dim=0) if bias else None,
            (v.t() @ x).mul_(self.scale) if down and v is not None else None,
            (t.t() @ dy).t().mul(self.scale) if up and t is not None else None,
        )


def affine_of(layer: Any) -> Affine | None:
    """What a layer computes at this moment; None where it is more than this, or somebody listens to it.

    nn.Linear, and PEFT's LoRA around one with a single plain adapter, on or switched off, whose dropout does nothing.
    """
    if layer._forward_hooks or layer._forward_pre_hooks:
        return None
    if type(layer) is nn.Linear:
        return _plain(layer)
    if not has_change(layer):
        return None
    base = affine_of(layer.base_layer)
    if base is None or layer.disable_adapters or layer.merged:
        return None if layer.merged else base
    return _changed(layer, base)


def has_change(layer: object) -> bool:
    """Whether a layer is PEFT's LoRA around a linear layer, whose weights may be held in 8 bits."""
    kinds = type(layer) is LoraLinear or type(layer).__name__ == "TorchaoLoraLinear"
    return kinds and type(cast(LoraLinear, layer).base_layer) is nn.Linear


def _plain(layer: nn.Linear) -> Affine | None:
    matrix = vars(layer).get(WHOLE)
    if matrix is not None:
        return Affine(None, layer.bias, matrix=matrix)
    return Affine(layer.weight, layer.bias) if type(layer.weight) in (nn.Parameter, Tensor) else None


def _changed(layer: LoraLinear, base: Affine) -> Affine | None:
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1 or names[0] in layer.lora_variant:
        return None if names else base
    down, up = layer.lora_A[names[0]], layer.lora_B[names[0]]
    dropout: Any = layer.lora_dropout[names[0]]
    still = isinstance(dropout, nn.Identity) or not dropout.training or dropout.p == 0
    if not still or type(down) is not nn.Linear or type(up) is not nn.Linear or up.bias is not None:
        return None
    if any(part._forward_hooks or part._forward_pre_hooks for part in (down, up)):
        return None
    return Affine(base.weight, base.bias, down.weight, up.weight, float(layer.scaling[names[0]]), base.matrix)


def settled(x: Tensor, *layers: Affine | None) -> tuple[Tensor, tuple[Affine, ...]] | None:
    """x and the layers in the type that products are computed in; None where a layer's matrix is of another type.

    Under autocast that is autocast's, and what stands beside the matrix is computed in it too, as PEFT's would be.
    """
    dtype, cast = product_type(x), autocasts(x)
    out: list[Affine] = []
    for layer in layers:
        if layer is None or dtype != (torch.float32 if layer.weight is None else layer.weight.dtype):
            return None
        if cast:
            layer = layer._replace(**{name: _as(getattr(layer, name), dtype) for name in ("bias", "down", "up")})
        elif any(part is not None and part.dtype != dtype for part in layer.tensors):
            return None
        out.append(layer)
    return x.to(dtype), tuple(out)


def _as(part: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if part is None else part.to(dtype)
