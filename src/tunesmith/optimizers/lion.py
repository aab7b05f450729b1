"""Lion: the sign of a mean gradient, so that every weight moves by the same amount (Chen et al., arXiv:2302.06675).

u = sign(β₁ m + (1 - β₁) g)      W ← W - lr (u + λ W)      m ← β₂ m + (1 - β₂) g
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tunesmith.optimizers import Groups, OptimizerSpec, Shapes
from tunesmith.optimizers._groups import decayed
from tunesmith.optimizers._options import Beta, Positive, Share
from tunesmith.optimizers._own import State, Stepping


class Lion(OptimizerSpec):
    """The sign of the mean gradient as update: half the state of AdamW, and a lower learning rate."""

    lr: Positive = 3e-5
    """The highest learning rate, after warm-up: a third to a tenth of AdamW's, as every weight moves by all of it."""
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    """How much of the mean is in an update, and how long the mean remembers."""
    weight_decay: Share = 0.0
    """Share of each matrix that is taken off a step, times lr; three to ten times AdamW's, since lr is smaller."""

    def build(self, groups: Groups, seed: int = 0) -> Optimizer:
        return _Signs(decayed(groups, self.weight_decay), {"lr": self.lr, "betas": self.betas})

    def state_bytes(self, shapes: Shapes) -> int:
        return 4 * sum(shape.numel() for shape in shapes.values())


class _Signs(Stepping):
    """Lion over any weights."""

    def move(self, weight: Tensor, grad: Tensor, state: State, group: dict[str, Any]) -> None:
        first, second = group["betas"]
        if not state:
            state["mean"] = torch.zeros_like(weight)
        mean: Tensor = state["mean"]
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(mean.lerp(grad, 1 - first).sign_(), alpha=-group["lr"])
        mean.lerp_(grad, 1 - second)
