"""GaLore: Adam inside the few directions that a matrix's gradient mostly has (Zhao et al., arXiv:2403.03507).

    every `refresh` steps:   U Σ Vᵀ = svd(G);   P = V₁…ᵣ where the matrix is tall, else U₁…ᵣ
    R = G P or Pᵀ G          W ← W - lr (scale · back(Adam(R)) + λ W),   back(N) = N Pᵀ or P N

All weights learn, and Adam's averages have rank · (the longer side) numbers. The projector is part of the state, so a
checkpoint brings it back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW as TorchAdamW
from torch.optim import Optimizer

from tunesmith.optimizers import Groups, Shapes
from tunesmith.optimizers._adam import Kept, direction, moment_bytes, need_bitsandbytes
from tunesmith.optimizers._groups import decayed, divide, fusible, larger, none_larger
from tunesmith.optimizers._joined import Joined
from tunesmith.optimizers._options import AdamOptions, Count, Positive
from tunesmith.optimizers._own import State, Stepping


class GaLore(AdamOptions):
    """Adam on gradients of low rank: all weights learn with a fraction of AdamW's state.

    Matrices inside layers with at least `rank` rows and columns are moved so; all other weights by AdamW.
    """

    lr: Positive = 1e-4
    """The highest learning rate, after warm-up: all of it for embeddings, head and vectors, `scale` times it for
    matrices inside layers."""
    rank: Count = 128
    """Directions of each gradient that are followed; more learn more and take more state."""
    refresh: Count = 200
    """Steps after which the directions are found anew, by a singular value decomposition of the gradient."""
    scale: Positive = 0.25
    """What the update of those matrices is multiplied by."""
    moments: Kept = "float32"
    """How Adam's averages of those matrices are kept; `8bit` takes a quarter and needs bitsandbytes."""

    def build(self, groups: Groups, seed: int = 0) -> Optimizer:
        inside, rest = divide(groups, lambda name, shape: larger(name, shape, self.rank))
        if not inside:
            raise none_larger(self.name(), self.rank, groups)
        options = {"lr": self.lr, "betas": self.betas, "eps": self.eps}
        others = decayed(rest, self.weight_decay)
        own = _Projected(decayed(inside, self.weight_decay), {**options, **self._own_options()})
        return Joined(own, *([TorchAdamW(others, **options, fused=fusible(others))] if others else []))

    def _own_options(self) -> dict[str, Any]:
        """What the matrices inside layers need beside Adam's options."""
        return self.model_dump(include={"rank", "refresh", "scale", "moments"})

    def state_bytes(self, shapes: Shapes) -> int:
        return sum(self._bytes(name, shape) for name, shape in shapes.items())

    def check(self, device: torch.device, dtype: torch.dtype) -> None:
        if self.moments == "8bit":
            need_bitsandbytes()

    def _bytes(self, name: str, shape: torch.Size) -> int:
        if not larger(name, shape, self.rank):
            return 8 * shape.numel()
        return moment_bytes(self.rank * max(shape), self.moments) + 4 * self.rank * min(shape)


class _Projected(Stepping):
    """GaLore over matrices."""

    def move(self, weight: Tensor, grad: Tensor, state: State, group: dict[str, Any]) -> None:
        tall = weight.shape[0] >= weight.shape[1]
        if state.get("step", 0) % group["refresh"] == 0:
            state["projector"] = _main_directions(grad, group["rank"], tall)
        projector: Tensor = state["projector"]
        found = direction(grad @ projector if tall else projector.mT @ grad, state, group)
        update = found @ projector.mT if tall else projector @ found
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(update, alpha=-group["lr"] * group["scale"])


def _main_directions(grad: Tensor, rank: int, tall: bool) -> Tensor:
    """[shorter side, rank] the first singular vectors of a gradient [m, n] on its shorter side."""
    left, _, right = torch.linalg.svd(grad, full_matrices=False)
    return (right[:rank].mT if tall else left[:, :rank]).contiguous()
