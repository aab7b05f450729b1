"""Optimizers against others' implementations of them, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from tunesmith.core.plugins import build
from tunesmith.optimizers import OptimizerSpec

SHAPES = ((24, 12), (8, 20), (16, 16))


def weights(shapes: Sequence[tuple[int, ...]] = SHAPES, kind: torch.dtype = torch.float32) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=draw).to(kind).requires_grad_() for shape in shapes]


def ours(name: str, params: Sequence[Tensor], lr: float, **options: object) -> Optimizer:
    spec = build("optimizer", {name: options})
    assert isinstance(spec, OptimizerSpec)
    return spec.build([{"params": list(params), "lr": lr}])


def walk(params: Sequence[Tensor], step: Callable[[], object], count: int = 6) -> None:
    """Steps with gradients that follow from a seed and the weights."""
    draw = torch.Generator().manual_seed(1)
    for _ in range(count):
        for param in params:
            noise = torch.randn(param.shape, generator=draw, dtype=torch.float32)
            param.grad = param.detach() + noise.to(param.dtype)
        step()


def moved(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """How far apart two walks ended, relative to how far they went."""
    start = weights([tuple(param.shape) for param in mine])
    apart = sum(float((left - right).detach().square().sum()) for left, right in zip(mine, theirs, strict=True))
    gone = sum(float((left - right).detach().square().sum()) for left, right in zip(mine, start, strict=True))
    return (apart / gone) ** 0.5


@pytest.mark.parametrize(("look", "nesterov"), [("nesterov", True), ("plain", False)])
@pytest.mark.parametrize(("size", "adjust"), [("adamw", "match_rms_adamw"), ("original", "original")])
def test_muon_is_that_of_torch(look: str, nesterov: bool, size: str, adjust: str) -> None:
    """Torch iterates in bfloat16 (8 bits), tunesmith on a CPU in float32."""
    mine, theirs = weights(), weights()
    own = ours("muon", mine, 0.02, look=look, size=size, momentum=0.9, weight_decay=0.1)
    other = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, nesterov=nesterov, weight_decay=0.1, adjust_lr_fn=adjust)
    walk(mine, own.step)
    walk(theirs, other.step)
    assert moved(mine, theirs) < 0.02
