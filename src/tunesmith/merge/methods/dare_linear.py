"""DARE:  W = W_0 + lambda * sum_i w_i s_i m_i (W_i - W_0),  m_i ~ Bernoulli(density) at each place.

s_i restores the sum of magnitudes, sum |d_i| / sum |m_i d_i|, which is 1 / density in expectation. Yu et al.,
arXiv:2311.03099. The draws follow from the seed, the tensor's name and the model's number.
"""

from __future__ import annotations

from tunesmith.merge.thinning import Random


class DareLinear(Random):
    """Drop changes at random, scale the rest up, and add them to the base."""

    rescale: bool = True
    """Multiply what stays, so that the sum of magnitudes is as before."""
