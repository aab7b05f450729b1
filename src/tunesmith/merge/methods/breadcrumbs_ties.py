"""Model Breadcrumbs with the signs of TIES:  W = W_0 + lambda * sum_{i: sign(d_i) = s} w_i d_i,  d_i = b_i (W_i - W_0).

b_i leaves out the `gamma` largest changes of a tensor, and of the others keeps the largest until `density` of all
is reached; s is the sign of the weighted sum at a place. Davari, Belilovsky, arXiv:2312.06795; Yadav et al.,
arXiv:2306.01708.
"""

from __future__ import annotations

from typing import ClassVar

from tunesmith.merge.thinning import Middle


class BreadcrumbsTies(Middle):
    """Drop the smallest changes and the largest outliers, and add those that agree in sign."""

    agreed: ClassVar[bool] = True
