"""What makes the pieces of a mixture: one model's weights, scaled or with noise, and rows that no model has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tunesmith.merge.methods import Array, Block, MergeMethod


class Expert(MergeMethod):
    """One model's tensor, with noise and a scale."""

    scale: float | None = None
    """Multiply by this number; empty leaves the bits alone."""
    noise: float | None = None
    """Standard deviation of the noise that is added before."""

    def merge(self, block: Block, known: Any) -> Array:
        (rows,) = block.tensors
        if self.noise:
            rows += block.draw(0).standard_normal(rows.shape, rows.dtype) * rows.dtype.type(self.noise)
        return rows if self.scale is None else np.multiply(rows, self.scale, out=rows)


class Given(MergeMethod):
    """Rows that no model has."""

    rows: Callable[[], Any]
    """All rows, asked for when the first block is written."""
    step: int
    """Rows in a block."""

    def merge(self, block: Block, known: Any) -> Array:
        """The rows of one block."""
        return self.rows()[block.number * self.step : (block.number + 1) * self.step]
