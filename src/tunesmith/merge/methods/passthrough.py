"""One model's tensors as they are, perhaps scaled:  W = s W_1. With slices it stacks layers of several models."""

from __future__ import annotations

from typing import Any

import numpy as np

from tunesmith.merge.methods import Array, Block, Each, MergeMethod


class Passthrough(MergeMethod):
    """Tensors of one model as they are; layers of several models are stacked by slices."""

    models = (1, 1)

    scale: Each[float | None] = (None,)
    """Multiply the tensor by this number; empty leaves its bits alone."""

    def merge(self, block: Block, known: Any) -> Array:
        (only,), (scale,) = block.tensors, self.scale
        return only if scale is None else np.multiply(only, scale, out=only)
