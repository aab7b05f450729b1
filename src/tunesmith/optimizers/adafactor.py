"""Adafactor: the mean square of a matrix's gradient is kept as a row and a column only (arXiv:1804.04235).

    v̂ᵢⱼ = rᵢ cⱼ / mean(r)      u = g / √v̂, clipped to an RMS of d      W ← W - max(ε, RMS(W)) ρ u,  ρ = min(lr, 1/√t)

r and c are means of g² over columns and rows, and remember longer the more steps were done (1 - t^decay). Torch's
implementation. Updates are relative: lr is a share of each weight matrix's own size.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch.optim import Adafactor as TorchAdafactor
from torch.optim import Optimizer

from tunesmith.optimizers import Groups, OptimizerSpec, Shapes
from tunesmith.optimizers._groups import decayed
from tunesmith.optimizers._options import Positive, Share


class Adafactor(OptimizerSpec):
    """Almost no state: a row and a column of numbers for each matrix; updates are a share of a weight's own size."""

    lr: Positive = 1e-2
    """The highest share by which a weight matrix changes in a step, after warm-up. From step t on it is 1/sqrt(t) where
    that is less (so from step 10,000 on at 1e-2), and the schedule goes on top."""
    decay: Annotated[float, Field(lt=0, ge=-1)] = -0.8
    """The mean square remembers 1 - t^decay in step t: the nearer to 0, the shorter its memory."""
    least_size: Positive = 1e-3
    """Weights smaller than this, such as those that start at zero, change as if they were so large."""
    clip: Annotated[float, Field(ge=1)] = 1.0
    """Largest root mean square of an update, before lr."""
    weight_decay: Share = 0.0
    """Share of each matrix that is taken off a step, times lr; vectors (norms, biases) are left alone."""

    def build(self, groups: Groups, seed: int = 0) -> Optimizer:
        parts = decayed(groups, self.weight_decay)
        return TorchAdafactor(parts, beta2_decay=self.decay, eps=(None, self.least_size), d=self.clip)

    def state_bytes(self, shapes: Shapes) -> int:
        return 4 * sum(_kept(shape) for shape in shapes.values())


def _kept(shape: torch.Size) -> int:
    """Numbers that are kept for a weight: its rows and columns, or itself if it is a vector."""
    count = shape.numel()
    return count if len(shape) < 2 else count // shape[-1] + count // shape[-2]
