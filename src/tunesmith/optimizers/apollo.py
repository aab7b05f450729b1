"""APOLLO: how much Adam would scale a gradient, estimated on a random projection of it (Zhu et al., arXiv:2412.05270).

    R = G P or Pᵀ G,   P random, each entry N(0, 1 / rank), on the shorter side, drawn anew every `refresh` steps
    s = |Adam(R)| / |R|,   for each row or column along the longer side, or for the whole matrix
    W ← W - lr (scale · limited(s G) + λ W)

`limited`: the norm of an update grows by 1 % a step at most. Rank 1 with one factor for a matrix is APOLLO-Mini, as
light as SGD. P is not kept: it follows from (seed, matrix, refresh).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import AdamW as TorchAdamW
from torch.optim import Optimizer

from tunesmith.optimizers import Groups, Shapes
from tunesmith.optimizers._adam import direction
from tunesmith.optimizers._groups import decayed, divide, fusible, larger, none_larger
from tunesmith.optimizers._joined import Joined
from tunesmith.optimizers._options import AdamOptions, Count, Positive
from tunesmith.optimizers._own import Drawing, State, draws

GROWTH = 1.01
MINI_SCALE = math.sqrt(128)


class Apollo(AdamOptions):
    """Gradients scaled as Adam would, with almost no state: all weights learn at nearly the memory of SGD.

    Matrices inside layers with at least `rank` rows and columns are moved so; all other weights by AdamW.
    """

    lr: Positive = 1e-4
    """The highest learning rate, after warm-up; what AdamW likes."""
    rank: Count = 256
    """Random directions on which the scale is estimated; 1 is APOLLO-Mini."""
    refresh: Count = 200
    """Steps after which the directions are drawn anew."""
    scaled: Literal["channel", "tensor"] | None = None
    """One factor for each channel or one for a matrix; by default channels, and a matrix with rank 1."""
    scale: Positive | None = None
    """What the update of those matrices is multiplied by; by default 1, and sqrt(128) with rank 1."""

    def build(self, groups: Groups, seed: int = 0) -> Optimizer:
        inside, rest = divide(groups, lambda name, shape: larger(name, shape, self.rank))
        if not inside:
            raise none_larger(self.name(), self.rank, groups)
        options = {"lr": self.lr, "betas": self.betas, "eps": self.eps}
        others = decayed(rest, self.weight_decay)
        own = _Scaled(decayed(inside, self.weight_decay), {**options, **self._own_options()}, seed)
        return Joined(own, *([TorchAdamW(others, **options, fused=fusible(others))] if others else []))

    def state_bytes(self, shapes: Shapes) -> int:
        matrices = {name for name, shape in shapes.items() if larger(name, shape, self.rank)}
        return 8 * sum(self.rank * max(shape) if name in matrices else shape.numel() for name, shape in shapes.items())

    def _own_options(self) -> dict[str, Any]:
        mini = self.rank == 1
        return {
            "rank": self.rank,
            "refresh": self.refresh,
            "scaled": self.scaled or ("tensor" if mini else "channel"),
            "scale": self.scale or (MINI_SCALE if mini else 1.0),
        }


class _Scaled(Drawing):
    """APOLLO over matrices."""

    def move(self, weight: Tensor, grad: Tensor, state: State, group: dict[str, Any]) -> None:
        tall = weight.shape[0] >= weight.shape[1]
        projector = self._projector(weight, state.get("step", 0) // group["refresh"], group["rank"])
        low = grad @ projector if tall else projector.mT @ grad
        along = None if group["scaled"] == "tensor" else (1 if tall else 0)
        update = grad * (_norm(direction(low, state, group), along) / (_norm(low, along) + 1e-8))
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(limited(update, state), alpha=-group["lr"] * group["scale"])

    def _projector(self, weight: Tensor, period: int, rank: int) -> Tensor:
        """[shorter side, rank] random directions, the same for all steps of a period."""
        generator = draws(weight.device, self.seed, self.numbers[weight], period)
        size = (min(weight.shape), rank)
        return torch.randn(size, generator=generator, device=weight.device, dtype=weight.dtype) / math.sqrt(rank)


def _norm(matrix: Tensor, along: int | None) -> Tensor:
    """The norm of a matrix [], or of its rows [m, 1] or columns [1, n]."""
    return matrix.norm() if along is None else matrix.norm(dim=along, keepdim=True)


def limited(update: Tensor, state: State) -> Tensor:
    """An update whose norm grows by a factor of GROWTH over that of the step before at most; after none, freely."""
    norm = update.norm()
    before = state.get("norm", norm)
    state["norm"] = torch.where(before > 0, torch.minimum(norm, GROWTH * before), norm)
    return update * (state["norm"] / norm.clamp(min=1e-30))
