"""PEFT's LoRA layers as one autograd function: no new memory for the change, and two tensors kept instead of six.

The arithmetic is that of `_affine`. Layers with several adapters, DoRA or dropout that does something, and layers that
are not PEFT's own `Linear`, are computed by PEFT.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from tunesmith.models.device import untyped
from tunesmith.models.fast import bind, plain
from tunesmith.models.fast._affine import Affine, affine_of, has_change, settled


def pull(model: nn.Module) -> int:
    """Compute a model's LoRA layers so; returns how many there are."""
    layers = [layer for layer in model.modules() if has_change(layer)]
    for layer in layers:
        bind(layer, _forward, "lora")
    return len(layers)


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    ready = None if args or kwargs else settled(x, affine_of(layer))
    if ready is None:
        return plain(layer, x, *args, **kwargs)
    x, (affine,) = ready
    with untyped(x):
        return Changed.apply(x, affine.rest, *affine.tensors)  # type: ignore[no-any-return]


class Changed(Function):
    """x [..., in] through a matrix with a change beside it, to [..., out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rest: tuple[Any, ...], *tensors: Tensor | None) -> Tensor:
        affine = Affine(*tensors, *rest)  # type: ignore[arg-type]
        rows = x.reshape(-1, x.shape[-1])
        y, t = affine.forward(rows)
        ctx.rest = rest
        ctx.save_for_backward(rows if any(ctx.needs_input_grad[2:]) else None, t, *tensors)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        rows, t, *tensors = ctx.saved_tensors
        affine = Affine(*tensors, *ctx.rest)  # type: ignore[call-arg]
        own, _, *needs = ctx.needs_input_grad
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        dx, v = affine.backward(dy) if own else (None, None)
        learned = affine.learned(tuple(needs), rows, dy, t, v)
        return dx if dx is None else dx.view(*grads[0].shape[:-1], -1), None, *learned
