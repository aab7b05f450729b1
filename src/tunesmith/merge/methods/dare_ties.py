"""DARE with the signs of TIES: task vectors are thinned at random, and places take what agrees with their sum's sign.

    d_i = s_i m_i (W_i - W_0),  m_i ~ Bernoulli(density)      W = W_0 + lambda * sum_{i: sign(d_i) = s} w_i d_i

Yu et al., arXiv:2311.03099; Yadav et al., arXiv:2306.01708. The draws follow from the seed, the tensor's name and the
model's number.
"""

from __future__ import annotations

from typing import ClassVar

from tunesmith.merge.thinning import Random


class DareTies(Random):
    """Drop changes at random, scale the rest up, and add those that agree in sign."""

    agreed: ClassVar[bool] = True

    rescale: bool = True
    """Multiply what stays, so that the sum of magnitudes is as before."""
