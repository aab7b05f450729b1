"""The arithmetic of a matrix with a low-rank change beside it, forward and backward, in as few buffers as it takes.

    y = x W' + b + s (x A') B'                       t = x A'
    dx = dy W + s (dy B) A                           v = dy B
    dA = s v' x,   dB = s dy' t,   dW = dy' x,   db = sum dy

(LoRA, arXiv:2106.09685.) The change is added into the buffer that the matrix product has made, so it costs its own few
operations and no new memory: on a processor most of the price of PEFT's own way is memory taken and given back.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    def forward(self, x: Tensor, added: Added | None, read: Rounded | None) -> Tensor:
        """x W' + b, [N, in] to [N, out], with a product added; read: what `matrix` makes of x first."""
        if self.matrix is not None:
            y = self.matrix.forward(x, added, read)
            return y if self.bias is None else y.add_(self.bias)
        weight = cast(Tensor, self.weight)
        y = x @ weight.t() if self.bias is None else torch.addmm(self.bias, x, weight.t())
        return y if added is None else added.to(y)

    def backward(self, dy: Tensor, added: Added | None, into: Tensor | None) -> Tensor:
        """dy W, [N, out] to [N, in], with a product added, itself added to `into` where that is given."""
        if self.matrix is not None:
            return self.matrix.backward(dy, added, into)
        weight = cast(Tensor, self.weight)
        dx = dy @ weight if into is None else into.addmm_(dy, weight)
        return dx if added is None else added.to(dx)


class Readers:
    """Layers that read the same rows, with one product for the first matrices of all changes, and one buffer for dx."""

    def __init__(self, tensors: Sequence[Tensor | None], rests: Sequence[tuple[Any, ...]]) -> None:
        """tensors: of all layers, one layer after the other; rests: `Affine.rest` of each."""
        self.layers = [Affine(*tensors[4 * n : 4 * n + 4], *rest) for n, rest in enumerate(rests)]  # type: ignore[arg-type]
        self.ranks = [0 if layer.down is None else len(layer.down) for layer in self.layers]

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """x [N, in] to a y [N, out] for each layer, and t of all changes, [N, sum of r]."""
        matrix, down = self.layers[0].matrix, self._down()
        read = None if matrix is None else matrix.read(x)
        t = None if down is None else x @ down.t()
        added = [
            None if own is None or layer.up is None else Added(own, layer.up.t(), layer.scale)
            for layer, own in zip(self.layers, self._split(t, 1), strict=True)
        ]
        return [layer.forward(x, more, read) for layer, more in zip(self.layers, added, strict=True)], t

    def backward(self, dys: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """A dy [N, out] for each layer to dx [N, in], and s v of all changes, [N, sum of r]."""
        dx, down, v = None, self._down(), self._back(dys)
        for layer, dy in zip(self.layers, dys, strict=True):
            last = layer is self.layers[-1] and down is not None and v is not None
            dx = layer.backward(dy, Added(v, down, 1.0) if last else None, dx)  # type: ignore[arg-type]
        return cast(Tensor, dx), v

    def learned(
        self, needs: Sequence[bool], x: Tensor, dys: Sequence[Tensor], t: Tensor | None, v: Tensor | None
    ) -> list[Tensor | None]:
        """The gradients of the tensors, None for those that `needs` leaves out; v is found where it is None."""
        down = None
        if any(needs[2::4]):
            v = self._back(dys) if v is None else v
            down = None if v is None else v.t() @ x
        out: list[Tensor | None] = []
        parts = zip(self.layers, dys, self._split(t, 1), self._split(down, 0), strict=True)
        for n, (layer, dy, own, slope) in enumerate(parts):
            weight, bias, needs_down, up = needs[4 * n : 4 * n + 4]
            out += [
                dy.t() @ x if weight else None,
                dy.sum(dim=0) if bias else None,
                slope if needs_down else None,
                (own.t() @ dy).t().mul(layer.scale) if up and own is not None else None,
            ]
        return out

    def _down(self) -> Tensor | None:
        downs = [layer.down for layer in self.layers if layer.down is not None]
        return torch.cat(downs) if len(downs) > 1 else next(iter(downs), None)

    def _back(self, dys: Sequence[Tensor]) -> Tensor | None:
        parts = zip(dys, self.layers, strict=True)
        found = [(dy @ layer.up).mul_(layer.scale) for dy, layer in parts if layer.up is not None]
        return torch.cat(found, dim=1) if len(found) > 1 else next(iter(found), None)

    def _split(self, whole: Tensor | None, dim: int) -> list[Tensor | None]:
        """For each layer its part of what is there for all; None for those without a change."""
        if whole is None:
            return [None] * len(self.layers)
        parts = whole.split(self.ranks, dim)
        return [part if rank else None for part, rank in zip(parts, self.ranks, strict=True)]


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
