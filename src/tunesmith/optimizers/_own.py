"""What tunesmith's own optimizers stand on: one weight is moved at a time, a checkpoint brings the state back."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tunesmith.optimizers import Groups

State = dict[str, Any]
"""What an optimizer keeps of one weight: tensors and numbers by name."""


class Exact(Optimizer):
    """An optimizer whose state comes back in the number types it had; torch's own casts it to those of the weights."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for index, saved in state_dict["state"].items():
            weight = weights[index]
            for name, value in saved.items():
                if isinstance(value, Tensor) and value.dtype != self.state[weight][name].dtype:
                    self.state[weight][name] = value.to(weight.device)


class Stepping(Exact):
    """An optimizer that moves one weight at a time."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self.move(weight, weight.grad, self.state[weight], group)

    @abstractmethod
    def move(self, weight: Tensor, grad: Tensor, state: State, group: dict[str, Any]) -> None:
        """One step of one weight; `state` is empty before its first."""


class Drawing(Stepping):
    """One that draws at random for each weight: from the run's seed and the weight's number."""

    def __init__(self, groups: Groups, options: dict[str, Any], seed: int) -> None:
        super().__init__(groups, options)
        self.seed = seed
        weights = [weight for group in self.param_groups for weight in group["params"]]
        self.numbers = {weight: number for number, weight in enumerate(weights)}


def draws(device: torch.device, *numbers: int) -> torch.Generator:
    """A generator whose draws follow from some numbers alone, such as (seed, step, weight)."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest) >> 1)
