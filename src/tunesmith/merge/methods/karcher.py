"""Karcher mean: the direction whose squared angles to those of all models add up to the least.

    u_i = W_i / |W_i|      repeat: v = mean_i (a_i / sin a_i) (u_i - cos(a_i) m),  m = cos|v| m + sin|v| v / |v|
    W = mean_i |W_i| * m        a_i: the angle between m and u_i

Karcher, Riemannian center of mass and mollifier smoothing, Communications on Pure and Applied Mathematics 30 (1977);
for merging, arXiv:2603.04972.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from tunesmith.merge.methods import Array, Block, MergeMethod, Whole
from tunesmith.merge.products import combine, products
from tunesmith.merge.sphere import Amounts, length, lengths_of, units_of


class Karcher(MergeMethod):
    """The mean of the models' directions on a sphere, times the mean of their lengths."""

    max_iter: int = Field(10, ge=0)
    """The most steps."""
    tol: float = Field(1e-5, ge=0)
    """Stop when a step is shorter than this; shorter tensors have no direction, smaller angles are none."""

    def measure(self, whole: Whole) -> Amounts | None:
        """How much of each model; None for a single one, which stays as it is."""
        both = products(whole, lambda block: block.tensors)
        sizes = lengths_of(both)
        if len(sizes) == 1:
            return None
        valid = sizes > self.tol
        if not valid.any():
            return np.zeros_like(sizes)
        units = units_of(both, np.where(valid, sizes, 0))
        mean = self._mean(units, valid / valid.sum())
        return mean * sizes.mean() / np.where(valid, sizes, 1)

    def merge(self, block: Block, known: Amounts | None) -> Array:
        """The models' rows, each times its amount."""
        return block.tensors[0] if known is None else combine(block.tensors, known.tolist())

    def _mean(self, units: Amounts, parts: Amounts) -> Amounts:
        size = length(parts, units)
        mean = parts / size if size >= self.tol else np.eye(len(parts))[np.argmax(parts > 0)]
        for _ in range(self.max_iter):
            step = self._step(units, parts, mean)
            size = length(step, units)
            if size < self.tol:
                break
            mean = np.cos(size) * mean + np.sin(size) / size * step
            mean /= length(mean, units)
        return mean

    def _step(self, units: Amounts, parts: Amounts, mean: Amounts) -> Amounts:
        """The mean of the ways from here to each direction."""
        cosines = np.clip(units @ mean, -1, 1)
        angles = np.arccos(cosines)
        far = parts * (angles >= self.tol)
        pull = far * np.divide(angles, np.sin(angles), out=np.ones_like(angles), where=np.sin(angles) > 0)
        return pull - (pull @ cosines) * mean
