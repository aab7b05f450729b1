"""Weighted mean:  W = sum_i w_i W_i / sum_i w_i   (without the division if `normalize` is off).

Wortsman et al. (model soups), arXiv:2203.05482.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import model_validator

from tunesmith.core.problem import Problem
from tunesmith.merge.methods import Array, Block, Each, MergeMethod


class Linear(MergeMethod):
    """The weighted mean of the models."""

    weight: Each[float]
    """How much of each model."""
    normalize: bool = True
    """Divide by the sum of the weights."""

    @model_validator(mode="after")
    def _can_be_divided(self) -> Linear:
        if self.normalize and sum(self.weight) == 0:
            problem = Problem("weight", "the weights sum to 0, and the sum is divided by", "Set normalize to false")
            raise ValueError(problem) from problem
        return self

    def merge(self, block: Block, known: Any) -> Array:
        first, *others = block.tensors
        total = sum(self.weight) if self.normalize else 1.0
        merged = np.multiply(first, self.weight[0], out=first)
        for tensor, weight in zip(others, self.weight[1:], strict=True):
            merged += np.multiply(tensor, weight, out=tensor)
        return np.divide(merged, total, out=merged) if total != 1 else merged
