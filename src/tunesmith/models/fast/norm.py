"""RMS norms in few passes over memory:  y = w * x r,  r = 1 / sqrt(mean x^2 + eps)   (arXiv:1910.07467).

    dx = r (w dy) - x r^3 / d * sum(w dy x)          dw = sum over tokens of dy x r

Gemma's norms multiply by 1 + w. On a processor, in the type of the weights; where states are of another one, the module
computes itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from tunesmith.models.fast import plain
from tunesmith.models.fast._trial import take

EXACT = (torch.float32, torch.float64)


def pull(model: nn.Module) -> int:
    """Compute a model's RMS norms so; returns how many there are."""
    plain_ones = take(model, "norm", _forward, _looks_alike, _width)
    return plain_ones + take(model, "norm", _forward_above_one, _looks_alike, _width)


def _looks_alike(part: Any) -> bool:
    if "RMSNorm" not in type(part).__name__ or "quickened" in vars(part) or len(list(part.parameters())) != 1:
        return False
    weight = getattr(part, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 1 and weight.dtype in EXACT and _eps(part) is not None


def _eps(part: Any) -> float | None:
    return getattr(part, "variance_epsilon", getattr(part, "eps", None))


def _width(part: Any) -> int:
    return len(part.weight)


def _forward(part: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _normed(part, x, 0.0, *args, **kwargs)


def _forward_above_one(part: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _normed(part, x, 1.0, *args, **kwargs)


def _normed(part: Any, x: Tensor, above: float, *args: Any, **kwargs: Any) -> Tensor:
    if args or kwargs or x.dtype != part.weight.dtype:
        return plain(part, x, *args, **kwargs)
    return Normed.apply(x, part.weight + above if above else part.weight, _eps(part))  # type: ignore[no-any-return]


class Normed(Function):
    """x [..., d] with the mean of squares 1, times w [d]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        r = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        return (x * r).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:  # type: ignore[override]
        x, weight, r = ctx.saved_tensors
        room = grads[0] * x
        slope = (room * r).flatten(0, -2).sum(dim=0) if ctx.needs_input_grad[1] else None
        share = room.mul_(weight).sum(dim=-1, keepdim=True).mul_(r.pow(3)).div_(-x.shape[-1])
        dx = torch.mul(grads[0], weight, out=room).mul_(r)
        return dx.addcmul_(x, share), slope, None
