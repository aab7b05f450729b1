"""Muon: momentum whose matrices are made orthogonal before they are applied; AdamW for all other weights.

    M ← μ M + (1 - μ) G        N = μ M + (1 - μ) G (Nesterov) or M
    W ← W - lr · s(W) · NS(N)      NS(N) ≈ U Vᵀ for N = U Σ Vᵀ

NS is the quintic Newton-Schulz iteration X ← a X + (b A + c A²) X with A = X Xᵀ, which brings all singular values near
one with matrix products alone. s(W) is 0.2 √max(rows, columns), which gives an update the usual size of AdamW's (Liu et
al., arXiv:2502.16982), or √max(1, rows / columns) (K. Jordan, kellerjordan.github.io/posts/muon).
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import AdamW as TorchAdamW
from torch.optim import Optimizer

from tunesmith.optimizers import Groups, OptimizerSpec, Shapes
from tunesmith.optimizers._groups import decayed, divide, fusible, hidden, none_hidden
from tunesmith.optimizers._joined import Joined
from tunesmith.optimizers._options import Beta, Positive, Share
from tunesmith.optimizers._own import State, Stepping

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(OptimizerSpec):
    """Momentum made orthogonal: learns fast when pre-training and needs one number of state for each matrix weight.

    Matrices inside layers are moved so; embeddings, the head and vectors by AdamW, with the options that start with
    `rest`.
    """

    lr: Positive = 2e-4
    """The highest learning rate of the matrices, after warm-up. With `size: adamw` what AdamW likes is right, with
    `size: original` some 0.02 when pre-training."""
    momentum: Beta = 0.95
    """How long the average of the gradient remembers."""
    look: Literal["nesterov", "plain"] = "nesterov"
    """`nesterov` looks a step ahead along the momentum, `plain` does not."""
    iterations: Annotated[int, Field(gt=0, lt=100)] = 5
    """Newton-Schulz iterations; more make the update more nearly orthogonal and take longer."""
    size: Literal["adamw", "original", "plain"] = "adamw"
    """How long updates are by the matrix's shape: as AdamW's usually are, by rows / columns as first published, or
    orthogonal as they are."""
    weight_decay: Share = 0.0
    """Share of each matrix inside layers that is taken off a step, times lr; 0.1 is usual when pre-training."""
    rest_lr: Positive | None = None
    """The highest learning rate of all other weights; by default lr."""
    rest_betas: tuple[Beta, Beta] = (0.9, 0.95)
    """How long AdamW's averages remember for the other weights."""
    rest_eps: Positive = 1e-8
    """Keeps AdamW's division from exploding for the other weights."""
    rest_weight_decay: Share = 0.0
    """Share of embeddings and head that is taken off a step, times their lr; vectors are left alone."""

    def build(self, groups: Groups, seed: int = 0) -> Optimizer:
        inside, rest = divide(groups, hidden)
        if not inside:
            raise none_hidden(self.name())
        ratio = 1.0 if self.rest_lr is None else self.rest_lr / self.lr
        others = decayed([{**group, "lr": group["lr"] * ratio} for group in rest], self.rest_weight_decay)
        parts: list[Optimizer] = [_Orthogonal(decayed(inside, self.weight_decay), self)]
        if others:
            parts.append(TorchAdamW(others, betas=self.rest_betas, eps=self.rest_eps, fused=fusible(others)))
        return Joined(*parts)

    def state_bytes(self, shapes: Shapes) -> int:
        return sum((4 if hidden(name, shape) else 8) * shape.numel() for name, shape in shapes.items())


class _Orthogonal(Stepping):
    """Muon over matrices, or stacks of them."""

    def __init__(self, groups: Groups, spec: Muon) -> None:
        kept = {"momentum": spec.momentum, "look": spec.look, "iterations": spec.iterations, "size": spec.size}
        super().__init__(groups, {"lr": spec.lr, "weight_decay": spec.weight_decay, **kept})

    def move(self, weight: Tensor, grad: Tensor, state: State, group: dict[str, Any]) -> None:
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        mean: Tensor = state["momentum"].lerp_(grad, 1 - group["momentum"])
        ahead = grad.lerp(mean, group["momentum"]) if group["look"] == "nesterov" else mean
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        update = orthogonal(ahead, group["iterations"])
        weight.add_(update, alpha=-group["lr"] * scale(weight.shape, group["size"]))


def orthogonal(matrix: Tensor, iterations: int) -> Tensor:
    """[..., m, n] a matrix with nearly the same singular vectors, whose singular values are all near one.

    In float32, which is the quicker on CPUs; on GPUs in bfloat16, whose rounding the iteration bears.
    """
    a, b, c = COEFFICIENTS
    kind = torch.bfloat16 if matrix.device.type == "cuda" else torch.promote_types(matrix.dtype, torch.float32)
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = (matrix.mT if tall else matrix).to(kind)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).to(matrix.dtype)


def scale(shape: torch.Size, size: str) -> float:
    """What lr is multiplied by for a matrix of this shape."""
    rows, columns = shape[-2:]
    if size == "adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns)) if size == "original" else 1.0
