"""The contract of optimizers: how a gradient becomes an update. One file an optimizer.

method's groups ─▶ named() ─▶ build() ─▶ each step: before_step() · gradients · step()
                                     └▶ to measure and to save: still()
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from tunesmith.core.plugins import Plugin

Groups = list[dict[str, Any]]
"""A method's parameter groups: `params`, their own `lr`, and where `named` was asked the `names` of the params."""

Shapes = Mapping[str, torch.Size]
"""The shapes of the weights that learn, by name."""


class OptimizerSpec(Plugin):
    """An optimizer by its options."""

    holds: ClassVar[torch.dtype] = torch.float32
    """The number type in which the weights that learn are held."""
    schedule: ClassVar[str | None] = None
    """The only schedule after warm-up that goes with it; None for any."""
    of_base: ClassVar[bool] = False
    """Whether it is only for the base's own weights, not for an adapter beside them."""

    lr: Annotated[float, Field(gt=0)]
    """The highest learning rate, after warm-up."""

    @abstractmethod
    def build(self, groups: Groups, seed: int = 0) -> Optimizer:
        """The optimizer over a method's parameter groups, each with its own `lr`.

        Its state must be tensors and numbers, so that a checkpoint holds it. seed: what all of its draws follow from.
        The weights may have shapes only (meta device), to see whether they fit.

        Raises:
            Problem: these weights are not for this optimizer.
        """

    @abstractmethod
    def state_bytes(self, shapes: Shapes) -> int:
        """Bytes of state, at the most, for weights of these shapes; the plan shows them."""

    def gradient_bytes(self, shapes: Shapes) -> int:
        """Bytes of gradients that are held at once for weights of these shapes."""
        return self.holds.itemsize * sum(shape.numel() for shape in shapes.values())

    def check(self, device: torch.device, dtype: torch.dtype) -> None:
        """Refuse what cannot be done on a device, or where products are computed in a number type.

        Raises:
            Problem: with what can be done instead.
        """

    def before_step(self, optimizer: Optimizer, step: int) -> None:
        """Called before the gradients of a step are computed, such as to choose which weights get one."""

    def heaviest_step(self, optimizer: Optimizer) -> None:
        """Let learn what learns in the step that keeps the most activations; the plan counts those."""

    def still(self, optimizer: Optimizer) -> AbstractContextManager[object]:
        """A context in which the weights are those to measure and to save, where training moves others."""
        return nullcontext()


def named(groups: Groups, model: nn.Module) -> Groups:
    """The groups with the name that each of their weights has in the model."""
    names = {id(weight): name for name, weight in model.named_parameters()}
    return [{**group, "names": [names[id(weight)] for weight in group["params"]]} for group in groups]
