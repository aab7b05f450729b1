"""Rotary positions as one autograd function:  y = x cos + turn(x) sin,  turn([a, b]) = [-b, a]   (arXiv:2104.09864).

Models call their file's `apply_rotary_pos_emb`. An attention layer gets a copy of its class's `forward` that sees this
one in its place; nothing outside the layer changes. Files whose function turns in another way are left alone: theirs
and this one must agree on random states.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from tunesmith.models.fast import bind
from tunesmith.models.fast._pieces import Maker, as_it_is

NAME = "apply_rotary_pos_emb"
KNOWN = ("q", "k", "cos", "sin", "unsqueeze_dim")
Piece = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


def pull(model: nn.Module, make: Maker = as_it_is) -> int:
    """Compute a model's rotary positions so; returns in how many layers."""
    piece = make(_turn, _turn_at_once)
    kinds: dict[type[nn.Module], list[nn.Module]] = {}
    for part in model.modules():
        kinds.setdefault(type(part), []).append(part)
    taken = [(part, forward) for kind, parts in kinds.items() if (forward := _changed(kind, piece)) for part in parts]
    for part, forward in taken:
        bind(part, forward, "rotary")
    return len(taken)


def _changed(kind: type[nn.Module], piece: Piece) -> FunctionType | None:
    """The forward of a class with this file's function in place of its own; None for classes without one like it."""
    forward: Any = vars(kind).get("forward")
    if type(forward) is not FunctionType or NAME not in forward.__code__.co_names or forward.__closure__:
        return None
    own: Any = forward.__globals__.get(NAME)
    code = getattr(own, "__code__", None)
    if code is None or code.co_varnames[: code.co_argcount] != KNOWN or not _agree(own, piece):
        return None
    changed = FunctionType(
        forward.__code__, {**forward.__globals__, NAME: partial(_turned, own, piece)}, forward.__name__
    )
    changed.__defaults__, changed.__kwdefaults__ = forward.__defaults__, forward.__kwdefaults__
    return changed


def _turned(
    own: Any, piece: Piece, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """Queries [B, H, N, D] and keys [B, G, N, D] turned by the angles of cos and sin [B, N, D].

    own: the file's function, for states of which a part is turned or that are of another type than the angles.
    """
    if cos.shape[-1] != q.shape[-1] or not cos.dtype == q.dtype == k.dtype:
        return own(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)  # type: ignore[no-any-return]
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return Turned.apply(q, cos, sin, piece), Turned.apply(k, cos, sin, piece)  # type: ignore[return-value]


class Turned(Function):
    """States turned by angles, which get no gradient: that of the states is turned back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, piece: Piece) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.piece = piece
        return piece(x, cos, sin, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return ctx.piece(grads[0], *ctx.saved_tensors, True), None, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    """x cos + turn(x) sin, or back: its transpose."""
    (a, b), (first, second) = x.chunk(2, dim=-1), sin.chunk(2, dim=-1)
    y = x * cos
    head, tail = y.chunk(2, dim=-1)
    head.addcmul_(b, second if back else first, value=1 if back else -1)
    tail.addcmul_(a, first if back else second, value=-1 if back else 1)
    return y


def _turn_at_once(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    """The same for a compiler, which writes each half once, in the order of memory in which layers make states."""
    (a, b), (c, d), (first, second) = (part.transpose(1, 2).unflatten(-1, (2, -1)).unbind(-2) for part in (x, cos, sin))
    halves = [a * c + b * second, b * d - a * first] if back else [a * c - b * first, b * d + a * second]
    return torch.stack(halves, dim=-2).flatten(-2).transpose(1, 2)


def _agree(own: Any, piece: Piece) -> bool:
    """Whether a file's function gives what this one gives, with the same gradients."""
    draw = torch.Generator().manual_seed(0)
    q, k, weights = (torch.randn(1, heads, 3, 8, generator=draw) for heads in (4, 2, 4))
    cos, sin = (torch.randn(1, 3, 8, generator=draw) for _ in range(2))

    def tried(function: Any) -> list[Tensor]:
        leaves = q.clone().requires_grad_(), k.clone().requires_grad_()
        with torch.enable_grad():
            found = function(*leaves, cos, sin)
            slopes = torch.autograd.grad((found[0] * weights).sum() + (found[1] * weights[:, :2]).sum(), leaves)
        return [*found, *slopes]

    try:
        theirs = tried(own)
    except (RuntimeError, IndexError, ValueError, TypeError):
        return False
    return all(
        a.shape == b.shape and torch.allclose(a, b, atol=1e-5)
        for a, b in zip(tried(partial(_turned, own, piece)), theirs, strict=True)
    )
