"""Model Breadcrumbs:  W = W_0 + lambda * sum_i w_i b_i (W_i - W_0).

b_i leaves out the `gamma` largest changes of a tensor, and of the others keeps the largest until `density` of all
is reached. Davari, Belilovsky, arXiv:2312.06795.
"""

from __future__ import annotations

from tunesmith.merge.thinning import Middle


class Breadcrumbs(Middle):
    """Drop the smallest changes and the largest outliers, and add the rest to the base."""
