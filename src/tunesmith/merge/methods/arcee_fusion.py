"""Arcee Fusion: take the other model only where its change is important, by size and by what it does to its row.

    importance = |W_1 - W_0| * KL(softmax(W_1 row) || softmax(W_0 row))
    W = W_1 where importance >= median + 1.5 (third quartile - first quartile), else W_0

mergekit's documentation of arcee_fusion (arXiv:2403.13257). Quartiles are those of the whole tensor; the softmax is
taken in float64, as the divergence is a small difference of large sums.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np

from tunesmith.merge.deltas import base_of
from tunesmith.merge.methods import Array, Block, MergeMethod, Whole
from tunesmith.merge.ranks import ranked

EPSILON = 1e-8
"""Added to each probability."""


class ArceeFusion(MergeMethod):
    """Take the other model where its change is among the important ones of its tensor."""

    base: ClassVar[Literal["none", "optional", "required"]] = "required"
    models: ClassVar[tuple[int, int | None]] = (1, 1)

    def measure(self, whole: Whole) -> float:
        """The importance from which on the other model is taken."""
        last = math.prod(whole.shape) - 1
        places = [int(share * last) for share in (0.25, 0.5, 0.75)]
        ((first, middle, third),) = ranked(whole, lambda block: [importance(block)], [places])
        return middle.value + 1.5 * (third.value - first.value)

    def merge(self, block: Block, known: float) -> Array:
        """Each element from one of the two."""
        return np.where(importance(block) >= known, block.tensors[0], base_of(block))


def importance(block: Block) -> Array:
    """How much each element's change matters, in float64."""
    base, other = base_of(block), block.tensors[0]
    ours, theirs = chances(other), chances(base)
    divergence = (ours * np.log(ours / theirs)).sum(axis=-1, keepdims=True)
    return np.abs(np.subtract(other, base, dtype=np.float64)) * divergence


def chances(rows: Array) -> Array:
    """The softmax of each row."""
    powers = np.exp(np.subtract(rows, rows.max(axis=-1, keepdims=True), dtype=np.float64))
    powers /= powers.sum(axis=-1, keepdims=True)
    return np.add(powers, EPSILON, out=powers)
