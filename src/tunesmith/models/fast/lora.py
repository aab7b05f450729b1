"""PEFT's LoRA layers as one autograd function: no new memory for the change, and two tensors kept instead of six.

The arithmetic is that of `_affine`. Layers with several adapters, DoRA or dropout that does something, and layers that
are not PEFT's own `Linear`, are computed by PEFT.

An attention's queries, keys and values are read from the same states by layers that are called one after the other:
the first call computes all of them (`Together`).
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from tunesmith.models.device import autocasts, untyped
from tunesmith.models.fast import TOGETHER, bind, plain
from tunesmith.models.fast._affine import Affine, Readers, affine_of, has_change, settled

SIBLINGS = ("q_proj", "k_proj", "v_proj")


def pull(model: nn.Module) -> int:
    """Compute a model's LoRA layers so; returns how many there are."""
    layers = [layer for layer in model.modules() if has_change(layer)]
    for layer in layers:
        bind(layer, _forward, "lora")
    for parent in filter(_reads_once, model.modules()):
        siblings = [part for name in SIBLINGS if has_change(part := cast(Any, getattr(parent, name, None)))]
        if len(siblings) > 1 and len({part.in_features for part in siblings}) == 1:
            together = Together(tuple(siblings))
            for layer in siblings:
                vars(layer)[TOGETHER] = together
                bind(layer, _forward_together, "lora")
    return len(layers)


def _reads_once(parent: nn.Module) -> bool:
    """Whether an attention's layers read the same states, not queries from one side and keys from the other."""
    sides = getattr(getattr(parent, "config", None), "is_encoder_decoder", False)
    return not sides and "cross" not in type(parent).__name__.lower()


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    ready = None if args or kwargs else settled(x, affine_of(layer))
    return plain(layer, x, *args, **kwargs) if ready is None else _changed(*ready)[0]


def _forward_together(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """One function for all groups, since a compiler makes anew what calls another one."""
    if torch.compiler.is_compiling() or args or kwargs or autocasts(x) or x.is_inference():
        return _forward(layer, x, *args, **kwargs)
    return vars(layer)[TOGETHER].forward(layer, x)  # type: ignore[no-any-return]


def _changed(x: Tensor, layers: tuple[Affine, ...]) -> tuple[Tensor, ...]:
    with untyped(x):
        tensors = [tensor for layer in layers for tensor in layer.tensors]
        return Changed.apply(x, [layer.rest for layer in layers], *tensors)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class _Kept:
    """What was computed of x at once for layers that have not been called yet, with what these were."""

    x: Tensor
    version: int
    grad: bool
    others: dict[nn.Module, tuple[Affine, Tensor]]


class Together:
    """Layers that read the same states, the first of which computes for all.

    Another layer takes what is there for it if it is called with the very same states, unchanged, and is what it was;
    else it computes alone. What nobody took is dropped when the first is called again. The same calls always compute
    the same, as a checkpoint that computes again needs it.
    """

    def __init__(self, layers: tuple[nn.Module, ...]) -> None:
        self.layers = layers
        self._kept: _Kept | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Together:
        """For copies of the layers, which lead back here; what is kept is not for them."""
        memo[id(self)] = other = Together(())
        other.layers = deepcopy(self.layers, memo)
        return other

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        """x [..., in] through one of the layers, to [..., out]."""
        if layer is not self.layers[0]:
            found = self._taken(layer, x)
            return _forward(layer, x) if found is None else found
        self._kept = None
        ready = settled(x, *(affine_of(each) for each in self.layers))
        if ready is None:
            return _forward(layer, x)
        first, *others = _changed(*ready)
        each = dict(zip(self.layers[1:], zip(ready[1][1:], others, strict=True), strict=True))
        self._kept = _Kept(x, x._version, torch.is_grad_enabled(), each)
        return first

    def _taken(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        kept = self._kept
        if kept is None or kept.x is not x or (kept.version, kept.grad) != (x._version, torch.is_grad_enabled()):
            return None
        was, found = kept.others.pop(layer, (None, None))
        if not kept.others:
            self._kept = None
        now = affine_of(layer)
        same = was is not None and now is not None and all(a is b for a, b in zip(now[:4], was[:4], strict=True))
        return found if same and cast(Affine, now).rest == cast(Affine, was).rest else None


class Changed(Function):
    """x [..., in] through matrices with a change beside them, to a tuple of [..., out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rests: list[tuple[Any, ...]], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        rows = x.reshape(-1, x.shape[-1])
        ys, t = Readers(tensors, rests).forward(rows)
        ctx.rests = rests
        ctx.save_for_backward(rows if any(ctx.needs_input_grad[2:]) else None, t, *tensors)
        return tuple(y.view(*x.shape[:-1], -1) for y in ys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        rows, t, *tensors = ctx.saved_tensors
        readers = Readers(tensors, ctx.rests)
        own, _, *needs = ctx.needs_input_grad
        dys = [dy.reshape(-1, dy.shape[-1]) for dy in grads]
        dx, v = readers.backward(dys) if own else (None, None)
        learned = readers.learned(needs, rows, dys, t, v)
        return dx if dx is None else dx.view(*grads[0].shape[:-1], -1), None, *learned
