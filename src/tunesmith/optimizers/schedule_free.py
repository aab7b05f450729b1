"""Schedule-free AdamW: an average of all weights so far takes the place of a falling learning rate.

    y = (1 - β₁) z + β₁ x                              gradients are taken at y
    z ← z - lr (g / (√v̂ + ε) + λ y)                    the weights that run ahead
    x ← (1 - c) x + c z,   c = lr²ₜ / Σ lr²            their average: what is measured and saved

Defazio et al., arXiv:2405.15682. The model holds y while training; x follows from y and z.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from tunesmith.optimizers import Groups, Shapes
from tunesmith.optimizers._groups import decayed
from tunesmith.optimizers._options import AdamOptions, Beta, Positive
from tunesmith.optimizers._own import State, Stepping


class ScheduleFree(AdamOptions):
    """AdamW that needs no falling learning rate: the average of its weights is measured and saved.

    The schedule is constant after warm-up; another one is refused.
    """

    schedule: ClassVar[str | None] = "constant"

    lr: Positive = 5e-4
    """The learning rate after warm-up; one to ten times what AdamW likes with a schedule."""
    betas: tuple[Annotated[float, Field(gt=0, lt=1)], Beta] = (0.9, 0.999)
    """How near to the average gradients are taken, and how long the average of the squared gradient remembers."""

    def build(self, groups: Groups, seed: int = 0) -> Optimizer:
        return _Averaged(decayed(groups, self.weight_decay), {"lr": self.lr, "betas": self.betas, "eps": self.eps})

    def state_bytes(self, shapes: Shapes) -> int:
        return 8 * sum(shape.numel() for shape in shapes.values())

    @contextmanager
    def still(self, optimizer: Optimizer) -> Iterator[None]:
        """The average in place of the weights; those come back bit for bit, from a copy that is kept meanwhile."""
        weights = [(weight, group) for group in optimizer.param_groups for weight in group["params"]]
        kept = {weight: weight.detach().clone() for weight, _ in weights if weight in optimizer.state}
        with torch.no_grad():
            for weight, group in weights:
                if weight in kept:
                    weight.lerp_(optimizer.state[weight]["ahead"], 1 - 1 / group["betas"][0])
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, value in kept.items():
                    weight.copy_(value)


class _Averaged(Stepping):
    """Schedule-free AdamW over any weights."""

    def move(self, weight: Tensor, grad: Tensor, state: State, group: dict[str, Any]) -> None:
        (first, second), lr = group["betas"], group["lr"]
        if not state:
            state.update(step=0, largest=0.0, total=0.0, ahead=weight.clone(), square=torch.zeros_like(weight))
        state["step"] += 1
        share = _share(state, lr)
        ahead, square = state["ahead"], state["square"]
        square.mul_(second).addcmul_(grad, grad, value=1 - second)
        update = grad / (square / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
        update.add_(weight, alpha=group["weight_decay"])
        weight.lerp_(ahead, share).add_(update, alpha=lr * (first * (1 - share) - 1))
        ahead.sub_(update, alpha=lr)


def _share(state: State, lr: float) -> float:
    """The weight of this step in the average: its lr squared over the sum of all so far; warm-up counts for little."""
    state["largest"] = max(state["largest"], lr)
    state["total"] += state["largest"] ** 2
    return state["largest"] ** 2 / state["total"] if state["total"] else 0.0
