"""Inner products of whole tensors, block by block: short sums in the blocks' own type, their sum in float64.

A method that turns or averages directions needs no more of a tensor than the products of every two models: each vector
that it makes is a combination of the models', so its length and its angles follow from the products alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tunesmith.merge.methods import Array, Block, Whole

RUN = 512
"""Products that are summed in the arrays' own type: few enough that their rounding does not show."""

Products = NDArray[np.float64]
"""The products of every two vectors [vectors, vectors]."""


def inner(left: Array, right: Array) -> float:
    """The inner product of two contiguous arrays of one shape."""
    whole = left.size // RUN * RUN
    left, right = left.reshape(-1), right.reshape(-1)
    runs = np.vecdot(left[:whole].reshape(-1, RUN), right[:whole].reshape(-1, RUN))
    rest = np.dot(left[whole:].astype(np.float64), right[whole:].astype(np.float64))
    return float(runs.sum(dtype=np.float64) + rest)


def products(whole: Whole, vectors: Callable[[Block], Sequence[Array]]) -> Products:
    """The products of every two of a block's vectors, summed over the tensor."""
    total: Products = np.zeros((0, 0))
    for block in whole:
        parts = vectors(block)
        if not len(total):
            total = np.zeros((len(parts), len(parts)))
        for row, left in enumerate(parts):
            for column, right in enumerate(parts[: row + 1]):
                total[row, column] += inner(left, right)
    return np.tril(total) + np.tril(total, -1).T


def combine(parts: Sequence[Array], amounts: Sequence[float]) -> Array:
    """The sum of the arrays, each times its amount; the arrays are overwritten."""
    total, *others = parts
    total *= amounts[0]
    for part, amount in zip(others, amounts[1:], strict=True):
        part *= amount
        total += part
    return total
