"""Thinning of task vectors: which of their elements stay.

    largest    the `density` part of the largest         Yadav et al. (TIES), arXiv:2306.01708
    middle     without the `gamma` largest outliers       Davari, Belilovsky (Breadcrumbs), arXiv:2312.06795
    random     each with probability `density`            Yu et al. (DARE), arXiv:2311.03099
    by rank    likelier the larger it is in its row       Deep et al. (DELLA), arXiv:2406.11617

With `rescale` what stays is multiplied so that the sum of magnitudes is what it was: sum |d| / sum |kept d|.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from tunesmith.core.problem import Problem
from tunesmith.merge.deltas import DeltaMethod, deltas
from tunesmith.merge.methods import Array, Block, Each, Whole
from tunesmith.merge.ranks import Band, bands

Share = Annotated[float, Field(ge=0, le=1)]
Mask = NDArray[np.bool_]

TINY = 1e-7
"""Sums of magnitudes below this are not rescaled: there is nothing to keep."""


@dataclass(frozen=True)
class Kept:
    """What stays of each model's task vector. bands: by magnitude, where a method needs them; scales: what restores."""

    bands: tuple[Band | None, ...]
    scales: tuple[float, ...]


class ThinningMethod(DeltaMethod):
    """A method over task vectors of which only a part stays."""

    density: Each[Share] = (1.0,)
    """Which part of each task vector stays."""
    rescale: bool = False
    """Multiply what stays, so that the sum of magnitudes is as before."""

    @abstractmethod
    def keep(self, delta: Array, model: int, block: Block, band: Band | None) -> Mask:
        """Which elements of a task vector's block stay, for a density below 1."""

    def band(self, model: int, size: int) -> tuple[int, int] | None:
        """The ranks by magnitude that stay in a task vector of `size` elements, or None for no matter of magnitude."""
        return None

    def measure(self, whole: Whole) -> Kept:
        """Bands of magnitudes, and by how much each model's rest is multiplied."""
        size, count = math.prod(whole.shape), len(self.density)
        ranges = [self.band(model, size) if 0 < self.density[model] < 1 else None for model in range(count)]
        found = tuple(bands(whole, magnitudes, ranges)) if any(ranges) else (None,) * count
        scales = self._scales(whole, found) if self.rescale else (1.0,) * count
        return Kept(found, scales)

    def thin(self, delta: Array, model: int, block: Block, known: Kept) -> float:
        """Set to zero what does not stay; what restores the sum of magnitudes."""
        self._clear(delta, model, block, known.bands[model])
        return known.scales[model]

    def _clear(self, delta: Array, model: int, block: Block, band: Band | None) -> None:
        if self.density[model] <= 0:
            delta.fill(0)
        elif self.density[model] < 1:
            delta *= self.keep(delta, model, block, band)

    def _scales(self, whole: Whole, found: tuple[Band | None, ...]) -> tuple[float, ...]:
        """The sum of magnitudes over that of what stays, for each model."""
        sums = np.zeros((2, len(found)))
        for block in whole if any(0 < density < 1 for density in self.density) else ():
            for model, delta in enumerate(deltas(block)):
                sums[0, model] += np.abs(delta).sum(dtype=np.float64)
                self._clear(delta, model, block, found[model])
                sums[1, model] += np.abs(delta).sum(dtype=np.float64)
        return tuple(before / after if min(before, after) >= TINY else 1.0 for before, after in sums.T.tolist())


class Largest(ThinningMethod):
    """The largest elements stay."""

    def band(self, model: int, size: int) -> tuple[int, int] | None:
        """The top of the order, one element at least."""
        return size - max(1, int(self.density[model] * size)), size

    def keep(self, delta: Array, model: int, block: Block, band: Band | None) -> Mask:
        """What lies in the band."""
        return in_band(delta, block, band)


class Middle(ThinningMethod):
    """The largest elements stay, but for outliers."""

    gamma: Each[Share] = (0.01,)
    """Which part is dropped from the top, as outliers; less where density would not be reached."""

    def band(self, model: int, size: int) -> tuple[int, int] | None:
        """The order below the outliers."""
        kept = int(self.density[model] * size)
        start = max(0, size - kept - int(self.gamma[model] * size))
        return (start, start + kept) if kept else None

    def keep(self, delta: Array, model: int, block: Block, band: Band | None) -> Mask:
        """What lies in the band."""
        return in_band(delta, block, band)


class Random(ThinningMethod):
    """Each element stays with the same probability."""

    def keep(self, delta: Array, model: int, block: Block, band: Band | None) -> Mask:
        """Drawn with probability density."""
        return block.draw(model).random(delta.shape, dtype=np.float32) < self.density[model]


class ByRank(ThinningMethod):
    """Each element stays with a probability that grows with its rank in its row."""

    epsilon: Each[float] = (0.15,)
    """The probability goes from density - epsilon for the smallest of a row to density + epsilon for the largest."""

    @model_validator(mode="after")
    def _probabilities(self) -> ByRank:
        for number, density in enumerate(self.density):
            epsilon = self.epsilon[min(number, len(self.epsilon) - 1)]
            if 0 < density < 1 and (density + abs(epsilon) >= 1 or density - abs(epsilon) <= 0):
                what = f"density {density} -/+ epsilon {epsilon} leaves the range from 0 to 1"
                raise ValueError(Problem("epsilon", what, "Choose a smaller epsilon"))
        return self

    def keep(self, delta: Array, model: int, block: Block, band: Band | None) -> Mask:
        """Drawn with a probability that follows the rank."""
        axis = min(1, delta.ndim - 1)
        chances = self._chances(model, delta.shape[axis]).reshape([-1] + [1] * (delta.ndim - axis - 1))
        drawn = block.draw(model).random(delta.shape, dtype=np.float32) < chances
        mask = np.empty_like(drawn)
        np.put_along_axis(mask, np.argsort(np.abs(delta), axis=axis), drawn, axis=axis)
        return mask

    def _chances(self, model: int, length: int) -> NDArray[np.float64]:
        """The probability of each rank of a row, the smallest element's first."""
        density, epsilon = self.density[model], self.epsilon[model]
        if length == 1:
            return np.array([density])
        return np.linspace(density - epsilon, density + epsilon, length)


def in_band(delta: Array, block: Block, band: Band | None) -> Mask:
    """Which elements have their magnitude in the band; without one none has."""
    return np.zeros(delta.shape, bool) if band is None else band.mask(np.abs(delta), block.number)


def magnitudes(block: Block) -> list[Array]:
    """The magnitudes of each model's task vector."""
    return [np.abs(delta, out=delta) for delta in deltas(block)]
