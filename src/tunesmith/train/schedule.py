"""The learning rate over a run: warm-up in a straight line, then cosine, linear, constant, or up until a cool-down.

The last (`wsd`: warm-up, stable, decay) is that of Hu et al., arXiv:2404.06395."""

from __future__ import annotations

import math
from collections.abc import Callable

from tunesmith.core.run import TrainSpec

SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}


def steps_of(amount: float, total: int) -> int:
    """A number of steps from a share of all steps (below 1) or a number of them; at least 1 unless 0."""
    if amount == 0:
        return 0
    return max(1, round(amount * total)) if amount < 1 else int(amount)


def factor(step: int, total: int, spec: TrainSpec) -> float:
    """What the learning rate is multiplied by in step 0 … total - 1; the first step of a warm-up is not zero."""
    warmup = min(steps_of(spec.warmup, total), total - 1)
    if step < warmup:
        return (step + 1) / warmup
    return spec.final_lr + (1 - spec.final_lr) * _shape(step, warmup, total, spec)


def _shape(step: int, warmup: int, total: int, spec: TrainSpec) -> float:
    """How much of the way between the highest and the last learning rate is left, 1 to 0."""
    if spec.schedule == "wsd":
        cooldown = min(steps_of(spec.cooldown, total), total - warmup)
        return min(1.0, (total - step) / max(1, cooldown))
    return SHAPES[spec.schedule]((step - warmup) / max(1, total - warmup))
