"""Means of directions: every point on the way is a sum of the models' unit vectors, so their products are all it takes.

    u_i = W_i / |W_i|      m = sum_i c_i u_i      m . u_j = (U c)_j,  |m|^2 = c . U c,      U: the products of the u_i

So an iteration costs a few numbers instead of passes over tensors, and is done in float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tunesmith.merge.products import Products

Amounts = NDArray[np.float64]
"""How much of each unit vector [vectors]."""


def length(amounts: Amounts, units: Products) -> float:
    """The length of a sum of unit vectors."""
    return float(np.sqrt(max(amounts @ units @ amounts, 0.0)))


def lengths_of(both: Products) -> Amounts:
    """The vectors' own lengths."""
    return np.sqrt(np.diagonal(both))


def units_of(both: Products, sizes: Amounts) -> Products:
    """The products of the vectors divided by these sizes; what has none has no direction."""
    inverse = np.divide(1.0, sizes, out=np.zeros_like(sizes), where=sizes > 0)
    return both * inverse[:, None] * inverse
