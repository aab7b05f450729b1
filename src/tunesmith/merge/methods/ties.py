"""TIES: the largest part of each task vector stays, places take the sign of their sum, and what agrees is averaged.

    d_i = largest `density` of W_i - W_0      s = sign(sum_i w_i d_i)
    W = W_0 + lambda * sum_{i: sign(d_i) = s} w_i d_i / sum_{i: sign(d_i) = s} w_i

Yadav et al., arXiv:2306.01708. Where elements of equal magnitude compete for the last places, these are spread evenly
over the tensor.
"""

from __future__ import annotations

from typing import ClassVar

from tunesmith.merge.thinning import Largest


class Ties(Largest):
    """Keep the largest changes of each model, and average those that agree in sign."""

    agreed: ClassVar[bool] = True

    normalize: bool = True
    """Divide by the sum of the weights that agree at a place."""
