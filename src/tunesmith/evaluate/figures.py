"""Figures: a measured value with the interval that the number of rows leaves open.

Shares (accuracy) get Wilson's score interval, which holds for few rows and near 0 and 1:

    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n),   z = 1.96

Everything else gets the percentile bootstrap over rows: rows are drawn with replacement 1000 times, the value is
computed each time, and the interval holds the middle 95 of 100. Draws follow from the seed alone.
(Wilson 1927; Efron 1979)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054
DRAWS = 1000
LEVEL = 0.95

Indices = NDArray[np.int64]
Statistic = Callable[[Indices], float]


@dataclass(frozen=True, slots=True)
class Figure:
    """A value, the 95 % interval [low, high] around it, and n, the number of rows behind it."""

    value: float
    low: float
    high: float
    n: int


def share(hits: int, n: int) -> Figure:
    """The share of hits among n rows, with Wilson's interval."""
    if n == 0:
        return Figure(math.nan, math.nan, math.nan, 0)
    p = hits / n
    middle, scale = p + Z * Z / (2 * n), 1 + Z * Z / n
    half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    low, high = (middle - half) / scale, (middle + half) / scale
    return Figure(p, low if hits else 0.0, high if hits < n else 1.0, n)


def bootstrap(n: int, statistic: Statistic, seed: int = 0, draws: int = DRAWS) -> Figure:
    """A statistic of n rows, with its bootstrap interval; the statistic gets the numbers of the rows drawn.

    Draws whose value is not finite (a perplexity beyond all numbers, nothing to divide by) are left out.
    """
    if n == 0:
        return Figure(math.nan, math.nan, math.nan, 0)
    value = statistic(np.arange(n))
    found = np.array([statistic(rows) for rows in _resamples(n, seed, draws)])
    found = found[np.isfinite(found)]
    if not len(found):
        return Figure(value, value, value, n)
    low, high = np.percentile(found, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Figure(value, float(low), float(high), n)


def mean(scores: Sequence[float] | NDArray[np.float64], seed: int = 0) -> Figure:
    """The mean of one number a row, with its bootstrap interval."""
    values = np.asarray(scores, dtype=np.float64)
    return bootstrap(len(values), lambda rows: float(values[rows].mean()), seed)


def gain(before: NDArray[np.float64], after: NDArray[np.float64], seed: int = 0) -> Figure:
    """The mean difference of two numbers a row, measured on the same rows, with its (paired) bootstrap interval."""
    return mean(after - before, seed)


def _resamples(n: int, seed: int, draws: int) -> Iterator[Indices]:
    generator = np.random.default_rng(seed)
    for _ in range(draws):
        yield generator.integers(0, n, n)
