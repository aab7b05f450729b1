"""Spherical interpolation of two models by weights, of whole tensors or of each row or column on its own:

    t = w_2 / (w_1 + w_2)        W = sin((1 - t) a) / sin(a) W_1 + sin(t a) / sin(a) W_2        a: the angle between

With a base the task vectors W_i - W_0 are interpolated, and the base is added. Shoemake, Animating rotation with
quaternion curves, SIGGRAPH 1985; options as in mergekit (arXiv:2403.13257). Parallel directions are interpolated along
a straight line.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from tunesmith.core.problem import Problem
from tunesmith.merge.deltas import directions
from tunesmith.merge.methods import Array, Block, Each, MergeMethod, Whole
from tunesmith.merge.products import products

SHORTEST = 1e-7
"""Lengths below this are taken for this."""
PARALLEL = 1e-16
"""One minus the squared cosine, up to which there is no arc."""

Lengths = NDArray[np.float64]
"""Products of the two vectors with themselves and with each other [3, ...]."""


class Nuslerp(MergeMethod):
    """Interpolate two models along the arc between their directions, by weights."""

    base: ClassVar[Literal["none", "optional", "required"]] = "optional"
    models: ClassVar[tuple[int, int | None]] = (2, 2)

    weight: Each[float]
    """How much of each model."""
    nuslerp_flatten: bool = True
    """Take a whole tensor as one vector."""
    nuslerp_row_wise: bool = False
    """Without flatten: vectors lie along the first axis; else along the last one."""

    @model_validator(mode="after")
    def _one_way(self) -> Nuslerp:
        if self.nuslerp_flatten and self.nuslerp_row_wise:
            what = "has no effect while nuslerp_flatten is on"
            raise ValueError(Problem("nuslerp_row_wise", what, "Set nuslerp_flatten: false, or take it out"))
        return self

    def measure(self, whole: Whole) -> Lengths | None:
        """The products of the vectors that reach over blocks; None where each lies in one row."""
        if self.nuslerp_flatten:
            both = products(whole, directions)
            return np.array([both[0, 0], both[1, 1], both[0, 1]])
        if self.nuslerp_row_wise:
            return np.sum([lengths(*directions(block), axis=0) for block in whole], axis=0)
        return None

    def merge(self, block: Block, known: Lengths | None) -> Array:
        """The two tensors' rows, each times its amount, and the base if there is one."""
        one, two = directions(block)
        first, second = self._amounts(lengths(one, two, axis=-1) if known is None else known)
        one *= first
        two *= second
        one += two
        if block.base is not None:
            one += block.base
        return one

    def _amounts(self, found: Lengths) -> tuple[Any, Any]:
        """How much of each vector."""
        total = sum(self.weight)
        t = 0.5 if abs(total) < 1e-6 else self.weight[1] / total
        sizes = np.maximum(np.sqrt(found[:2]), SHORTEST)
        cosine = np.clip(found[2] / sizes[0] / sizes[1], -1, 1)
        straight = 1 - cosine**2 <= PARALLEL
        angle = np.arccos(np.where(straight, 0, cosine))
        first, second = (np.where(straight, part, np.sin(part * angle) / np.sin(angle)) for part in (1 - t, t))
        return (first, second) if first.ndim else (first.item(), second.item())


def lengths(one: Array, two: Array, axis: int) -> Lengths:
    """The products of two arrays with themselves and each other along an axis, the last one kept."""
    pairs = ((one, one), (two, two), (one, two))
    return np.stack([np.multiply(*pair, dtype=np.float64).sum(axis=axis, keepdims=axis == -1) for pair in pairs])
