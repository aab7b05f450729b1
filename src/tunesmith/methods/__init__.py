"""The contract of methods: what may change in a model. One file a method."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedModel

from tunesmith.core.plugins import Plugin
from tunesmith.core.problem import Problem


class Method(Plugin):
    """What may change in a model, how it is saved, and how it becomes plain weights."""

    reversible: ClassVar[bool] = False
    """Whether `off` gives back the untouched model without a second copy of it."""

    @abstractmethod
    def apply(self, model: PreTrainedModel) -> nn.Module:
        """Make the model trainable in place and return what is trained; only declared weights may require gradients.

        Raises:
            Problem: an option does not fit this model; the hint names what would.
        """

    def groups(self, model: nn.Module, lr: float) -> list[dict[str, Any]]:
        """The parameter groups of the optimizer."""
        return [{"params": [weight for weight in model.parameters() if weight.requires_grad], "lr": lr}]

    def off(self, model: nn.Module) -> AbstractContextManager[object]:
        """A context in which the model computes as before `apply`, bit for bit.

        Raises:
            Problem: the method changes the base itself and keeps no copy.
        """
        raise Problem(
            f"method {self.name()}",
            "changes the base model itself, so the untouched model is gone while training",
            "Set the objective's reference to precomputed, or use a method that can be switched off, such as lora",
        )

    def after_step(self, model: nn.Module, step: int) -> None:
        """Called after each optimizer step."""

    @abstractmethod
    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the result so that transformers or PEFT load it; safetensors and JSON only."""

    @abstractmethod
    def fold(self, model: nn.Module) -> PreTrainedModel:
        """The plain transformers model with the change melted into its weights."""
