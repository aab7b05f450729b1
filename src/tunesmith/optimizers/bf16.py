"""AdamW over weights that are held in bfloat16, which has 8 bits of precision: a weight of 1 next to 1.0078.

At small learning rates most updates are less than half of a weight's last digit, and rounding loses them. Three ways
to keep them:

    master       W₃₂ ← W₃₂ - lr u;   W = round(W₃₂)                        a float32 copy beside each weight
    stochastic   W ← up or down, each with the chance that makes W - lr u right on average      (arXiv:2010.06192)
    kahan        W' = round(W + (c - lr u));   c ← (c - lr u) - (W' - W)    what was lost is added in the next step

The chances follow from (train.seed, step, weight).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from tunesmith.core.problem import Problem
from tunesmith.optimizers import Groups, Shapes
from tunesmith.optimizers._adam import direction
from tunesmith.optimizers._groups import decayed
from tunesmith.optimizers._options import AdamOptions, Positive
from tunesmith.optimizers._own import Drawing, State, draws

BYTES = {"master": 4, "stochastic": 0, "kahan": 2}


class Bf16(AdamOptions):
    """AdamW over weights held in bfloat16: they and their gradients take half the memory.

    Gradients of several micro-batches are added up in bfloat16 too. The bfloat16 weights are measured and saved.
    """

    holds: ClassVar[torch.dtype] = torch.bfloat16

    lr: Positive = 2e-5
    """The highest learning rate, after warm-up; what AdamW likes."""
    rounding: Literal["master", "stochastic", "kahan"] = "master"
    """How small updates survive: a float32 copy of each weight, rounding up or down by chance, or a second bfloat16
    number for what rounding lost."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """How Adam's averages are held; in bfloat16 they are rounded by chance, since the nearest would never change."""

    def build(self, groups: Groups, seed: int = 0) -> Optimizer:
        options = {"lr": self.lr, "betas": self.betas, "eps": self.eps}
        own = {"rounding": self.rounding, "rounded": self.moments == "bfloat16"}
        return _Halves(decayed(groups, self.weight_decay), {**options, **own}, seed)

    def state_bytes(self, shapes: Shapes) -> int:
        moments = 8 if self.moments == "float32" else 4
        return (BYTES[self.rounding] + moments) * sum(shape.numel() for shape in shapes.values())

    def check(self, device: torch.device, dtype: torch.dtype) -> None:
        if dtype != torch.bfloat16:
            raise Problem(
                "optimizer.bf16",
                f"holds weights in bfloat16, and products would be computed in {str(dtype)[6:]}",
                "Set model.dtype to bfloat16, or use the optimizer adamw",
            )


class _Halves(Drawing):
    """AdamW over bfloat16 weights."""

    def move(self, weight: Tensor, grad: Tensor, state: State, group: dict[str, Any]) -> None:
        draw = draws(weight.device, self.seed, state.get("step", 0), self.numbers[weight])
        if group["rounding"] == "master" and not state:
            state["master"] = weight.float()
        before = state["master"] if "master" in state else weight.float()
        change = -group["lr"] * (self._direction(grad.float(), state, group, draw) + group["weight_decay"] * before)
        if group["rounding"] == "master":
            weight.copy_(before.add_(change))
        elif group["rounding"] == "stochastic":
            weight.copy_(by_chance(before + change, draw))
        else:
            change += state["lost"].float() if "lost" in state else 0.0
            weight.copy_(before + change)
            state["lost"] = (change - (weight.float() - before)).bfloat16()

    def _direction(self, grad: Tensor, state: State, group: dict[str, Any], draw: torch.Generator) -> Tensor:
        """Adam's direction in float32, from averages held in float32 or bfloat16."""
        if not group["rounded"]:
            return direction(grad, state, group)
        wide = {name: value.float() if name in ("mean", "square") else value for name, value in state.items()}
        found = direction(grad, wide, group)
        state["step"] = wide["step"]
        for name in ("mean", "square"):
            state[name] = by_chance(wide[name], draw)
        return found


def by_chance(wide: Tensor, draw: torch.Generator) -> Tensor:
    """A float32 tensor in bfloat16, rounded up or down by chance so that the mean is right.

    A bfloat16 is the upper half of a float32's bits: a random lower half is added, and the lower half cut off.
    """
    noise = torch.randint(0, 1 << 16, wide.shape, generator=draw, device=wide.device, dtype=torch.int32)
    bits = (wide.view(torch.int32) + noise) & -65536
    return torch.where(wide.isfinite(), bits.view(torch.float32), wide).bfloat16()
