"""Reinforced Agent Merging Plus, tensor by tensor: what only one model changed is added and a little amplified.

    d_i = W_i - W_0 where |W_i - W_0| > epsilon, else 0      n: how many d_i are not 0 at a place
    W = W_0 + d_i (1 + r min(shared_i / unique_i, alpha)) where only d_i is not 0, else W_0 + sum_i d_i / n

shared_i, unique_i: in how many places of the tensor a model's change meets others, and is alone. arXiv:2601.13572.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from tunesmith.merge.deltas import base_of, changed
from tunesmith.merge.methods import Array, Block, MergeMethod, Whole


class RamplusTl(MergeMethod):
    """Add what a single model changed, the more the more it shares elsewhere, and the mean of what several changed."""

    base: ClassVar[Literal["none", "optional", "required"]] = "required"

    r: float = 0.1
    """How strongly lone changes are amplified."""
    alpha: float = Field(0.2, ge=0)
    """The largest ratio of shared to lone changes that counts."""
    epsilon: float = Field(1e-5, ge=0)
    """Changes up to this are none."""

    def measure(self, whole: Whole) -> tuple[float, ...]:
        """By how much the lone changes of each model are multiplied."""
        totals = np.sum([_counts(block, self.epsilon) for block in whole], axis=0)
        ratios = totals[:, 0] / np.maximum(totals[:, 1], self.epsilon)
        return tuple((1 + self.r * np.clip(ratios, 0, self.alpha)).tolist())

    def merge(self, block: Block, known: tuple[float, ...]) -> Array:
        """The base and the merged changes."""
        parts, counts = changed(block, self.epsilon)
        alone = counts == 1
        merged = np.zeros_like(parts[0])
        for part, factor in zip(parts, known, strict=True):
            merged += np.multiply(part, 1 + (factor - 1) * alone, out=part)
        merged /= np.maximum(counts, 1)
        merged += base_of(block)
        return merged


def _counts(block: Block, epsilon: float) -> Array:
    """How many changes of each model are shared, and how many are alone [models, 2]."""
    parts, counts = changed(block, epsilon)
    kinds = (counts > 1, counts == 1)
    return np.array([[np.count_nonzero(part[kind]) for kind in kinds] for part in parts], np.float64)
