"""AdamW: Adam with weight decay apart from the gradient (Loshchilov & Hutter, arXiv:1711.05101)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch.optim import AdamW as TorchAdamW
from torch.optim import Optimizer

from tunesmith.optimizers import Groups, OptimizerSpec, Shapes
from tunesmith.optimizers._groups import decayed, fusible

Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamW(OptimizerSpec):
    """Adam with decoupled weight decay: the usual choice; two numbers of state for each weight that learns."""

    lr: Annotated[float, Field(gt=0)] = 2e-4
    """The highest learning rate, after warm-up. LoRA likes 1e-4 to 5e-4, full fine-tuning 1e-5 to 5e-5."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """How long the averages of the gradient and of its square remember."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Keeps the division from exploding."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Share of each matrix that is taken off a step, times lr; vectors (norms, biases) are left alone."""

    def build(self, groups: Groups, seed: int = 0) -> Optimizer:
        parts = decayed(groups, self.weight_decay)
        return TorchAdamW(parts, betas=self.betas, eps=self.eps, fused=fusible(parts))

    def state_bytes(self, shapes: Shapes) -> int:
        return 8 * sum(shape.numel() for shape in shapes.values())
