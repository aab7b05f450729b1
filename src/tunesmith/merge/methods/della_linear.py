"""DELLA without signs:  W = W_0 + lambda * sum_i w_i s_i m_i (W_i - W_0),  m_i drawn by rank.

    p(m = 1) = density - epsilon + 2 epsilon (rank - 1) / (n - 1)    ranks of |d| in a row of n, the smallest first

A tensor of one axis is one row. Deep et al., arXiv:2406.11617. The draws follow from the seed, the tensor's name and
the model's number.
"""

from __future__ import annotations

from tunesmith.merge.thinning import ByRank


class DellaLinear(ByRank):
    """Drop changes at random, small ones likelier, scale the rest up, and add them to the base."""

    rescale: bool = True
    """Multiply what stays, so that the sum of magnitudes is as before."""
