"""Weighted mean:  W = sum_i w_i W_i / sum_i w_i   (without the division if `normalize` is off).

Wortsman et al. (model soups), arXiv:2203.05482.
"""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from tunesmith.core.problem import Problem
from tunesmith.merge.methods import Array, Block, Each, MergeMethod
from tunesmith.merge.products import combine


class Linear(MergeMethod):
    """The weighted mean of the models."""

    weight: Each[float]
    """How much of each model."""
    normalize: bool = True
    """Divide by the sum of the weights."""

    @model_validator(mode="after")
    def _divisible(self) -> Linear:
        if self.normalize and sum(self.weight) == 0:
            what = "the weights add up to 0, and the mean divides by their sum"
            raise ValueError(Problem("weight", what, "Choose others, or set normalize: false"))
        return self

    def merge(self, block: Block, known: Any) -> Array:
        """The models' rows, each times its part."""
        total = sum(self.weight) if self.normalize else 1.0
        return combine(block.tensors, [weight / total for weight in self.weight])
