"""The contract of optimizers: how a gradient becomes an update. One file an optimizer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.optim import Optimizer

from tunesmith.core.plugins import Plugin


class OptimizerSpec(Plugin):
    """An optimizer by its options."""

    lr: Annotated[float, Field(gt=0)]
    """The highest learning rate, after warm-up."""

    @abstractmethod
    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer over a method's parameter groups, each with its own `lr`."""

    @abstractmethod
    def state_bytes(self, shapes: Sequence[torch.Size]) -> int:
        """Bytes of state for trainable weights of these shapes; the plan shows them."""

    def before_step(self, optimizer: Optimizer, step: int) -> None:
        """Called before the gradients of a step are computed, such as to choose which weights get one."""

    def still(self, optimizer: Optimizer) -> AbstractContextManager[object]:
        """A context in which the weights are those to measure and to save, where training moves others."""
        return nullcontext()
