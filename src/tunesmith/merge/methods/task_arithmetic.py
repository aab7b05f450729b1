"""Task arithmetic:  W = W_0 + lambda * sum_i w_i (W_i - W_0)   (over sum_i w_i if `normalize`).

Ilharco et al., arXiv:2212.04089.
"""

from __future__ import annotations

from tunesmith.merge.deltas import DeltaMethod


class TaskArithmetic(DeltaMethod):
    """Add to the base what each model learned over it."""
