"""Layers in turn: only some of a model's layers learn in a step; the others need no gradients.

A block is all weights of one numbered layer; what lies outside of layers (embeddings, head, last norm) are the ends.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor
from torch.optim import AdamW as TorchAdamW

from tunesmith.core.problem import Problem
from tunesmith.optimizers import Groups, Shapes
from tunesmith.optimizers._groups import NUMBERED, decayed, fusible
from tunesmith.optimizers._options import AdamOptions

ENDS = ""
T = TypeVar("T")


class Turns(TorchAdamW):
    """AdamW over weights of which some learn in each step: `blocks` of them by the start of their names."""

    def __init__(self, groups: Groups, spec: AdamOptions, seed: int) -> None:
        parts = decayed(groups, spec.weight_decay)
        super().__init__(parts, lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=fusible(parts))
        self.seed = seed
        self.blocks = _by_block((name, weight) for group in groups for name, weight in _named(group))

    @property
    def layers(self) -> list[str]:
        """The blocks without the ends, in the order of the model."""
        return [block for block in self.blocks if block != ENDS]

    def activate(self, chosen: Iterable[str], *, drop: bool) -> None:
        """Let some blocks learn and no others; drop: forget the state of those others."""
        active = set(chosen)
        for block, weights in self.blocks.items():
            for weight in weights:
                weight.requires_grad_(block in active)
                if drop and block not in active:
                    self.state.pop(weight, None)


def block_of(name: str) -> str:
    """The start of a weight's name up to its layer's number; ENDS outside of layers."""
    found = NUMBERED.search(name)
    return name[: found.end() - 1] if found else ENDS


def sizes(shapes: Shapes) -> dict[str, int]:
    """How many numbers the weights of each block have."""
    found = _by_block(shapes.items())
    return {block: sum(shape.numel() for shape in inside) for block, inside in found.items()}


def check_blocks(name: str, optimizer: Turns, least: int) -> None:
    """Refuse weights with fewer layers than take turns.

    Raises:
        Problem: with what to use instead.
    """
    count = len(optimizer.layers)
    if count < least:
        raise Problem(
            f"optimizer.{name}",
            f"lets layers learn in turn and needs {least} of them; the weights that learn are of {count}",
            "Use the method full, or the optimizer adamw",
        )


def drawn(names: list[str], count: int, *numbers: int) -> list[str]:
    """Some of the names by chance, which follows from the numbers alone."""
    return random.Random(repr(numbers)).sample(names, count)


def _named(group: Mapping[str, Any]) -> Iterable[tuple[str, Tensor]]:
    return zip(group.get("names") or [ENDS] * len(group["params"]), group["params"], strict=True)


def _by_block(weights: Iterable[tuple[str, T]]) -> dict[str, list[T]]:
    found: dict[str, list[T]] = {}
    for name, weight in weights:
        found.setdefault(block_of(name), []).append(weight)
    return found
