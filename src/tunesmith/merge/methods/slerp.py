"""Spherical interpolation between the base and one model:

    W = sin((1 - t) a) / sin(a) W_0 + sin(t a) / sin(a) W_1        a: the angle between the two tensors as vectors

Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985. Tensors that are almost parallel or opposite (a
cosine beyond 0.9995) are interpolated along a straight line.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from tunesmith.merge.deltas import base_of
from tunesmith.merge.methods import Array, Block, MergeMethod, Whole
from tunesmith.merge.products import combine, products

STRAIGHT = 0.9995
"""Cosine beyond which the arc is a straight line."""
EMPTY = 1e-8
"""A tensor shorter than this has no direction."""


class Slerp(MergeMethod):
    """Go from the base (0) to the model (1) along the arc between their directions."""

    base: ClassVar[Literal["none", "optional", "required"]] = "required"
    models: ClassVar[tuple[int, int | None]] = (1, 1)

    t: float
    """How far: 0 is the base, 1 the other model."""

    def measure(self, whole: Whole) -> tuple[float, float]:
        """How much of the base, and how much of the model."""
        both = products(whole, lambda block: (base_of(block), block.tensors[0]))
        first, second = (length if length > EMPTY else 1.0 for length in (both[0, 0] ** 0.5, both[1, 1] ** 0.5))
        cosine = both[0, 1] / first / second
        if abs(cosine) > STRAIGHT:
            return 1 - self.t, self.t
        angle = math.acos(cosine)
        return math.sin((1 - self.t) * angle) / math.sin(angle), math.sin(self.t * angle) / math.sin(angle)

    def merge(self, block: Block, known: Any) -> Array:
        """The two tensors' rows, each times its amount."""
        return combine((base_of(block), block.tensors[0]), known)
