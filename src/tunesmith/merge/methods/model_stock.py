"""Model Stock: how far to go from the base to the models' mean follows from the angles between what they learned.

    t = N cos a / (1 + (N - 1) cos a)        W = t mean_i W_i + (1 - t) W_0
    cos a: the mean cosine between W_i - W_0 and W_j - W_0, over all pairs

Jang, Yun, Han, arXiv:2403.19522. With `filter_wise` each row of a tensor has a ratio of its own.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any, ClassVar, Literal

import numpy as np

from tunesmith.merge.deltas import base_of, deltas
from tunesmith.merge.methods import Array, Block, MergeMethod, Whole
from tunesmith.merge.products import combine, products

SHORTEST = 1e-6
"""Products of lengths below this are taken for this."""
SINGULAR = 1e-6
"""Where updates oppose each other to within this, there is no ratio, and the base stays."""


class ModelStock(MergeMethod):
    """Go from the base towards the mean of the models, as far as they agree."""

    base: ClassVar[Literal["none", "optional", "required"]] = "required"
    models: ClassVar[tuple[int, int | None]] = (2, None)

    filter_wise: bool = False
    """Find the ratio for each row alone, instead of once for a tensor."""

    def measure(self, whole: Whole) -> float | None:
        """The ratio of a whole tensor; None if rows have their own."""
        if self.filter_wise:
            return None
        both = products(whole, deltas)
        return float(_ratio(both[:, :, None])[0])

    def merge(self, block: Block, known: float | None) -> Array:
        """The base and the models' mean difference from it, times the ratio."""
        parts = deltas(block)
        ratio: Any = known
        if ratio is None:
            ratio = _ratio(np.stack([[_along(left, right) for right in parts] for left in parts]))[..., None]
        merged = combine(parts, [1 / len(parts)] * len(parts))
        merged *= ratio
        merged += base_of(block)
        return merged


def _along(left: Array, right: Array) -> Array:
    """Products along the last axis [rows]."""
    return np.multiply(left, right, dtype=np.float64).sum(axis=-1)


def _ratio(both: Array) -> Array:
    """t from the products of the differences [models, models, ...]."""
    sizes = np.sqrt(np.moveaxis(np.diagonal(both), -1, 0))
    pairs = list(combinations(range(len(both)), 2))
    cosines = [np.clip(both[i, j] / np.maximum(sizes[i] * sizes[j], SHORTEST), -1, 1) for i, j in pairs]
    cosine, count = np.mean(cosines, axis=0), len(both)
    divisor = 1 + (count - 1) * cosine
    return np.divide(count * cosine, divisor, out=np.zeros_like(divisor), where=np.abs(divisor) >= SINGULAR)
