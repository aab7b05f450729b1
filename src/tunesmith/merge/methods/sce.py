"""SCE: select the elements in which models differ most, weigh models by their energy, erase minority signs.

    select   the `select_topk` part of the elements whose variance over the models is largest
    weigh    w_i = mean(d_i^2) / sum_j mean(d_j^2),   d_i = W_i - W_0 at what was selected
    erase    W = W_0 + sum_{i: sign(d_i) = s} w_i d_i / sum_{i: sign(d_i) = s} w_i,   s = sign(sum_i d_i)

Wan et al. (FuseChat), arXiv:2408.07990.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from tunesmith.merge.deltas import agreeing, base_of, deltas, majority
from tunesmith.merge.methods import Array, Block, MergeMethod, Whole
from tunesmith.merge.products import inner
from tunesmith.merge.ranks import Band, bands

TINY = 1e-6
"""Energies that add up to less are taken for equal; weights that do, for this."""


@dataclass(frozen=True)
class Selected:
    """The band of variances that is selected, None for everything, and the weight of each model."""

    band: Band | None
    weights: tuple[float, ...]


class Sce(MergeMethod):
    """Select where models differ most, weigh each by its energy there, and drop minority signs."""

    base: ClassVar[Literal["none", "optional", "required"]] = "required"

    select_topk: float = Field(1.0, ge=0, le=1)
    """Which part of the elements with any variance is selected."""
    int8_mask: bool = False
    """Read for the sake of mergekit's recipes; it changes nothing, since no mask is kept here."""

    def measure(self, whole: Whole) -> Selected | None:
        """What is selected, and each model's weight; None where nothing is."""
        size, band = math.prod(whole.shape), None
        if self.select_topk < 1:
            spread = sum(int(np.count_nonzero(variance(deltas(block)))) for block in whole)
            chosen = int(spread * self.select_topk)
            if not chosen:
                return None
            (band,) = bands(whole, lambda block: [variance(deltas(block))], [(size - chosen, size)])
        blocks = [[inner(part, part) for part in selected(block, band)] for block in whole]
        energies = np.sum(blocks, axis=0) / size
        total = energies.sum()
        weights = energies / total if abs(total) >= TINY else np.full_like(energies, 1 / len(energies))
        return Selected(band, tuple(weights.tolist()))

    def merge(self, block: Block, known: Selected | None) -> Array:
        """The base and the merged differences."""
        if known is None:
            return base_of(block)
        parts = selected(block, known.band)
        sign = majority(parts)
        for part, weight in zip(parts, known.weights, strict=True):
            part *= weight
        merged, divisor = agreeing(parts, sign, known.weights)
        merged /= np.maximum(divisor, TINY, out=divisor)
        merged += base_of(block)
        return merged


def variance(parts: Sequence[Array]) -> Array:
    """The variance over models at each place."""
    mean = parts[0].copy()
    for part in parts[1:]:
        mean += part
    mean /= len(parts)
    total = np.zeros_like(mean)
    for part in parts:
        total += np.square(part - mean)
    return np.divide(total, len(parts), out=total)


def selected(block: Block, band: Band | None) -> list[Array]:
    """The differences from the base, zero where nothing is selected."""
    parts = deltas(block)
    if band is not None:
        mask = band.mask(variance(parts), block.number)
        for part in parts:
            part *= mask
    return parts
