"""The contract of optimizers: how a gradient becomes an update. One file an optimizer."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any

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
    def state_bytes(self, trainable: int) -> int:
        """Bytes of state for so many trainable numbers; the plan adds them up."""
