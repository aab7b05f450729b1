"""Whether a module computes what a lever takes it for, found by trying on a few random numbers."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.models.fast import bind, plain

ROWS = 5
JUST_ONE = 2
"""Parameters of a forward that reads one thing: itself and that."""


def take(
    model: nn.Module,
    name: str,
    forward: Callable[..., Tensor],
    alike: Callable[[Any], bool],
    width: Callable[[Any], int],
) -> int:
    """Compute by `forward` all modules that look alike and whose class stood the trial; returns how many they are.

    width: numbers that a module reads of each token.
    """
    kinds: dict[type[nn.Module], list[nn.Module]] = {}
    for part in model.modules():
        if alike(part) and len(signature(type(part).forward).parameters) == JUST_ONE:
            kinds.setdefault(type(part), []).append(part)
    taken = [part for parts in kinds.values() if same(parts[0], forward, width(parts[0])) for part in parts]
    for part in taken:
        bind(part, forward, name)
    return len(taken)


def same(module: nn.Module, forward: Callable[..., Tensor], width: int) -> bool:
    """Whether `forward(module, x)` has the module's own values and gradient by x, for random x [1, 5, width].

    On `meta`, where nothing has values, a module is what it looks like.
    """
    weight = next(part for part in module.parameters() if part.is_floating_point())
    if weight.is_meta:
        return True
    x = torch.randn(1, ROWS, width, generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    training = module.training
    module.eval()
    try:
        found, expected = _tried(module, forward, x), _tried(module, plain, x)
    finally:
        module.train(training)
    near = 8 * torch.finfo(weight.dtype).eps ** 0.75
    return all(
        ours.shape == theirs.shape and float((ours - theirs).abs().max()) <= near * float(theirs.abs().max())
        for ours, theirs in zip(found, expected, strict=True)
    )


def _tried(module: nn.Module, forward: Callable[..., Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        y = forward(module, leaf)
        weights = torch.arange(y.numel(), dtype=torch.float32, device=y.device).sin().view_as(y)
        (slope,) = torch.autograd.grad((y * weights).sum(), leaf)
    return y.detach(), slope
