"""DELLA: task vectors are thinned at random by rank, and places average what agrees with their sum's sign.

    p(m = 1) = density - epsilon + 2 epsilon (rank - 1) / (n - 1)    ranks of |d| in a row of n, the smallest first
    d_i = s_i m_i (W_i - W_0)
    W = W_0 + lambda * sum_{i: sign(d_i) = s} w_i d_i / sum_{i: sign(d_i) = s} w_i

A tensor of one axis is one row. Deep et al., arXiv:2406.11617. The draws follow from the seed, the tensor's name and
the model's number.
"""

from __future__ import annotations

from typing import ClassVar

from tunesmith.merge.thinning import ByRank


class Della(ByRank):
    """Drop changes at random, small ones likelier, scale the rest up, and average those that agree in sign."""

    agreed: ClassVar[bool] = True

    normalize: bool = True
    """Divide by the sum of the weights that agree at a place."""
    rescale: bool = True
    """Multiply what stays, so that the sum of magnitudes is as before."""
