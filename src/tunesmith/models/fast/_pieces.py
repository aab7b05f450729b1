"""Pieces: the small functions of levers that stand between products, computed as they are or compiled (`fused`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

Piece = TypeVar("Piece", bound=Callable[..., Any])


class Maker(Protocol):
    """How pieces are made."""

    def __call__(self, piece: Piece, at_once: Piece | None = None) -> Piece:
        """A function that computes what `piece` does; at_once: the same without blocks and buffers, if it has any."""
        ...


def as_it_is(piece: Piece, at_once: Piece | None = None) -> Piece:
    """The piece itself, which torch computes an operation at a time."""
    return piece
