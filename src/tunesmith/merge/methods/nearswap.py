"""NearSwap: where the other model is near the base, it is taken; where it is far, hardly.

    s = min(1, t / |W_1 - W_0|)        W = s W_1 + (1 - s) W_0

alchemonaut/QuartetAnemoi-70B-t0.0001 (model card, 2024); as in mergekit (arXiv:2403.13257).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from tunesmith.merge.deltas import base_of, deltas
from tunesmith.merge.methods import Array, Block, MergeMethod

NEAREST = 1e-6
"""Differences below this are taken for this."""


class Nearswap(MergeMethod):
    """Take the other model where it differs from the base by less than t, and less of it the more it differs."""

    base: ClassVar[Literal["none", "optional", "required"]] = "required"
    models: ClassVar[tuple[int, int | None]] = (1, 1)

    t: float = Field(ge=0)
    """Differences up to this are taken whole."""

    def merge(self, block: Block, known: Any) -> Array:
        """The base and a part of the difference."""
        (delta,) = deltas(block)
        part = np.maximum(np.abs(delta), NEAREST)
        np.minimum(np.divide(self.t, part, out=part, dtype=part.dtype), 1, out=part)
        delta *= part
        delta += base_of(block)
        return delta
