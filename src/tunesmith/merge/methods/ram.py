"""Reinforced Agent Merging: what only one model changed is added whole, what several changed is averaged.

    d_i = W_i - W_0 where |W_i - W_0| > epsilon, else 0      n: how many d_i are not 0 at a place
    W = W_0 + sum_i d_i / max(n, 1)

arXiv:2601.13572.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from tunesmith.merge.deltas import base_of, changed
from tunesmith.merge.methods import Array, Block, MergeMethod


class Ram(MergeMethod):
    """Add what a single model changed, and the mean of what several changed."""

    base: ClassVar[Literal["none", "optional", "required"]] = "required"

    epsilon: float = Field(1e-5, ge=0)
    """Changes up to this are none."""

    def merge(self, block: Block, known: Any) -> Array:
        """The base and the merged changes."""
        parts, counts = changed(block, self.epsilon)
        merged, *others = parts
        for part in others:
            merged += part
        merged /= np.maximum(counts, 1)
        merged += base_of(block)
        return merged
