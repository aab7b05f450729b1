"""RMS norms in few passes over memory:  y = w * x r,  r = 1 / sqrt(mean x^2 + eps)   (arXiv:1910.07467).

    dx = r (w dy) - x r^3 / d * sum(w dy x)          dw = sum over tokens of dy x r

Gemma's norms multiply by 1 + w. On a processor, in the type of the weights; where states are of another one, the module
computes itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from tunesmith.models.fast import plain
from tunesmith.models.fast._pieces import Maker, as_it_is
from tunesmith.models.fast._trial import take

EXACT = (torch.float32, torch.float64)


class Pieces(NamedTuple):
    """Values of rows, and their slopes, as they are computed."""

    values: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
    slopes: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def pull(model: nn.Module, make: Maker = as_it_is) -> int:
    """Compute a model's RMS norms so; returns how many there are."""
    pieces = Pieces(make(_values), make(_slopes))
    return sum(take(model, "norm", partial(_forward, pieces, above), _looks_alike, _width) for above in (0.0, 1.0))


def _looks_alike(part: Any) -> bool:
    if "RMSNorm" not in type(part).__name__ or "quickened" in vars(part) or len(list(part.parameters())) != 1:
        return False
    weight = getattr(part, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 1 and weight.dtype in EXACT and _eps(part) is not None


def _eps(part: Any) -> float | None:
    return getattr(part, "variance_epsilon", getattr(part, "eps", None))


def _width(part: Any) -> int:
    return len(part.weight)


def _forward(pieces: Pieces, above: float, part: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if args or kwargs or x.dtype != part.weight.dtype:
        return plain(part, x, *args, **kwargs)
    weight = part.weight + above if above else part.weight
    return Normed.apply(x, weight, _eps(part), pieces)  # type: ignore[no-any-return]


def _values(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y [N, d] and r [N, 1] of rows [N, d]."""
    r = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * r).mul_(weight), r


def _slopes(dy: Tensor, x: Tensor, weight: Tensor, r: Tensor) -> Tensor:
    """dx [N, d]"""
    room = dy * x
    share = room.mul_(weight).sum(dim=-1, keepdim=True).mul_(r.pow(3)).div_(-x.shape[-1])
    dx = torch.mul(dy, weight, out=room).mul_(r)
    return dx.addcmul_(x, share)


class Normed(Function):
    """x [..., d] with the mean of squares 1, times w [d]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, pieces: Pieces) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y, r = pieces.values(rows, weight, eps)
        ctx.slopes = pieces.slopes
        ctx.save_for_backward(rows, weight, r)
        return y.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:  # type: ignore[override]
        rows, weight, r = ctx.saved_tensors
        dy = grads[0].reshape(rows.shape)
        dw = (dy * rows).t() @ r if ctx.needs_input_grad[1] else None
        dx = ctx.slopes(dy, rows, weight, r)
        return dx.view(grads[0].shape), dw if dw is None else dw[:, 0], None, None
