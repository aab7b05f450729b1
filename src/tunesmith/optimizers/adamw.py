"""AdamW: Adam with weight decay apart from the gradient (Loshchilov & Hutter, arXiv:1711.05101)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.optim import AdamW as TorchAdamW
from torch.optim import Optimizer

from tunesmith.optimizers import OptimizerSpec

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

    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        parts = [part for group in groups for part in self._by_shape(group)]
        return TorchAdamW(parts, betas=self.betas, eps=self.eps, fused=self._fusible(parts))

    def state_bytes(self, shapes: Sequence[torch.Size]) -> int:
        return 8 * sum(shape.numel() for shape in shapes)

    def _by_shape(self, group: dict[str, Any]) -> list[dict[str, Any]]:
        matrices = [weight for weight in group["params"] if weight.ndim >= 2]
        vectors = [weight for weight in group["params"] if weight.ndim < 2]
        both = ((matrices, self.weight_decay), (vectors, 0.0))
        return [{**group, "params": weights, "weight_decay": decay} for weights, decay in both if weights]

    def _fusible(self, groups: list[dict[str, Any]]) -> bool:
        """The fused update (one pass over memory) is faster on CPUs and GPUs and exists for floats there."""
        return all(
            weight.device.type in ("cpu", "cuda") and torch.is_floating_point(weight)
            for group in groups
            for weight in group["params"]
        )
