"""Weighted mean of directions in one tangent plane, of whole tensors:

    u_i = W_i / |W_i|      m = sum_i w_i u_i / |...|      v = sum_i w_i (u_i - (u_i . m) m)
    W = (cos|v| m + sin|v| v / |v|) * sum_i w_i |W_i|

With a base, W_i are the task vectors, and the base is added. The exponential map is that of Buss, Fillmore, Spherical
averages, ACM Transactions on Graphics 20 (2001); options as in mergekit (arXiv:2403.13257).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import model_validator

from tunesmith.core.problem import Problem
from tunesmith.merge.deltas import directions
from tunesmith.merge.methods import Array, Block, Each, MergeMethod, Whole
from tunesmith.merge.products import combine, products
from tunesmith.merge.sphere import Amounts, length, lengths_of, units_of


class Multislerp(MergeMethod):
    """Average the directions of any number of models on a sphere, and their lengths beside."""

    base: ClassVar[Literal["none", "optional", "required"]] = "optional"

    weight: Each[float]
    """How much of each model."""
    normalize_weights: bool = True
    """Divide the weights by their sum."""
    eps: float = 1e-8
    """Keeps divisions by lengths finite."""

    @model_validator(mode="after")
    def _divisible(self) -> Multislerp:
        if self.normalize_weights and sum(self.weight) == 0:
            what = "the weights add up to 0, and they are divided by their sum"
            raise ValueError(Problem("weight", what, "Choose others, or set normalize_weights: false"))
        return self

    def measure(self, whole: Whole) -> Amounts | None:
        """How much of each model; None for a single one, which stays as it is."""
        if len(self.weight) == 1:
            return None
        both = products(whole, directions)
        weights = self._weights()
        sizes = lengths_of(both)
        units = units_of(both, sizes + self.eps)
        size = length(weights, units)
        if size < self.eps:
            return self._straight(weights, sizes)
        mean = weights / size
        side = weights - (weights @ units @ mean) * mean
        turn = length(side, units) + self.eps
        return (np.cos(turn) * mean + np.sin(turn) / turn * side) * (weights @ sizes) / (sizes + self.eps)

    def merge(self, block: Block, known: Amounts | None) -> Array:
        """The models' rows, each times its amount, and the base if there is one."""
        if known is None:
            return block.tensors[0]
        merged = combine(directions(block), known.tolist())
        if block.base is not None:
            merged += block.base
        return merged

    def _weights(self) -> Amounts:
        weights = np.array(self.weight)
        return weights / weights.sum() if self.normalize_weights else weights

    def _straight(self, weights: Amounts, sizes: Amounts) -> Amounts:
        """Two opposite directions have no mean on the sphere, but along the straight line; nor has what is all zero."""
        if len(weights) == 2 or not sizes.any():
            return weights
        raise Problem("", "the weighted directions of the models cancel", "Choose other weights")
