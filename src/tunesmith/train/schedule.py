"""The learning rate over a run: warm-up in a straight line, then cosine, linear or constant."""

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
    done = (step - warmup) / max(1, total - warmup)
    return spec.final_lr + (1 - spec.final_lr) * SHAPES[spec.schedule](done)
