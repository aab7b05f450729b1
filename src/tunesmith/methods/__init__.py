"""The contract of methods: what may change in a model. One file a method."""

from __future__ import annotations

import fnmatch
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.core.plugins import Plugin
from tunesmith.core.problem import Problem
from tunesmith.models.forest import Batch
from tunesmith.models.policy import Policy
from tunesmith.models.quantize import Held

Losses = tuple[Tensor, dict[str, Tensor]]
"""A loss as a sum [], and further sums to report."""


class Formula(Protocol):
    """What is minimised: an objective, as a method sees it."""

    def count(self, batch: Batch) -> float:
        """What sums over a batch are divided by."""
        ...

    def loss(self, policy: Policy, batch: Batch) -> Losses:
        """The loss as a sum over what `count` counts."""
        ...


class Method(Plugin):
    """What may change in a model, how it is saved, and how it becomes plain weights."""

    changes_base: ClassVar[bool] = True
    """Whether weights of the base itself learn; they are then held in float32, whatever is computed in."""
    reads_segments: ClassVar[bool] = False
    """Whether what it computes depends on how rows are cut into segments, so that nothing can be shared by rows."""
    usual_lr: ClassVar[float] = 2e-4
    """A learning rate of AdamW that usually suits it; methods are compared with these."""

    @property
    def reversible(self) -> bool:
        """Whether `off` gives back the untouched model without a second copy of it."""
        return False

    @property
    def starts_at_identity(self) -> bool:
        """Whether the model computes after `apply` and `begin` what it computed before; if not, a run says so."""
        return True

    def unfit(self, held: Held) -> str:
        """Why the method cannot stand on a base that is quantised so, for a person; empty where it can."""
        return "it changes weights of the base itself, and quantised ones cannot learn" if self.changes_base else ""

    @property
    def needs_quantized_base(self) -> str:
        """Why the method makes sense on a quantised base only, for a person; empty where it stands on any."""
        return ""

    @property
    def virtual_tokens(self) -> int:
        """Learned vectors before every row; each takes one place of the model's context."""
        return 0

    @abstractmethod
    def apply(self, model: PreTrainedModel) -> nn.Module:
        """Make the model trainable in place and return what is trained; only declared weights may require gradients.

        Raises:
            Problem: an option does not fit this model; the hint names what would.
        """

    def outline(self) -> Method:
        """The method with first values that need no weights: the same shapes, for models without memory."""
        return self

    def adopt(self, model: PreTrainedModel, adapter: Path) -> nn.Module:
        """Go on training an adapter that was saved before.

        Raises:
            Problem: the method has no adapters, or the saved one has other options.
        """
        raise Problem(
            "model.path",
            f"{adapter} is an adapter, and the method {self.name()} cannot go on with one",
            "Fold it first (tunesmith fold) and start from the folded model",
        )

    def groups(self, model: nn.Module, lr: float) -> list[dict[str, Any]]:
        """The parameter groups of the optimizer."""
        return [{"params": list(trainable(model).values()), "lr": lr}]

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

    def begin(self, policy: Policy, batches: Iterator[Batch], steps: int) -> None:
        """Called once on the fresh model, before the optimizer is made and any checkpoint is put back.

        batches: rows of the first steps, for first values that are found from data; steps: those of the whole run.
        A resumed run begins in the same way, so what is done here may follow from nothing else.
        """

    def loss(self, policy: Policy, batch: Batch, formula: Formula) -> Losses:
        """The loss of a batch: the objective's own, and what the method adds to it.

        A term that belongs to a step, not to its rows, is multiplied by `formula.count(batch)`: the loop divides by
        the sum of the counts.
        """
        return formula.loss(policy, batch)

    def after_step(self, model: nn.Module, step: int) -> None:
        """Called after each optimizer step, while the gradients are still there."""

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """What else changes while training beside the weights that learn, for a checkpoint."""
        return {}

    def restore(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""

    def report(self, model: nn.Module) -> list[str]:
        """What the method found out in the run, for a person: the gist first; all of it is kept in the record."""
        return []

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the result so that transformers or PEFT load it; safetensors and JSON only.

        Where the base's own weights learn, that is the model itself.
        """
        save_plain(model, folder)

    def fold(self, model: nn.Module) -> PreTrainedModel:
        """The plain transformers model with the change melted into its weights; there already if they are its own.

        Raises:
            Problem: the change cannot be written as weights of this architecture.
        """
        assert isinstance(model, PreTrainedModel)
        return model


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that learn, by name; tied ones once."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def thaw(model: nn.Module, patterns: tuple[str, ...] = ("*",)) -> None:
    """Let the weights learn whose names match a pattern, and no others.

    Raises:
        Problem: a pattern matches nothing; the hint shows names that exist.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            shown = ", ".join(names[:3] + names[-2:])
            raise Problem(f"name {pattern!r}", "matches no weight of this model", f"Names look like: {shown}")
    for name, weight in model.named_parameters():
        weight.requires_grad_(any(fnmatch.fnmatch(name, pattern) for pattern in patterns))


def hold_in_float32(model: nn.Module) -> None:
    """Hold what learns in float32: in bfloat16 most updates are smaller than a weight's last digit."""
    for weight in model.parameters():
        if weight.requires_grad and weight.dtype in (torch.bfloat16, torch.float16):
            weight.data = weight.data.float()


def hold_in(model: nn.Module, kind: torch.dtype) -> None:
    """Hold what learns in the number type that the optimizer wants."""
    for weight in model.parameters():
        if weight.requires_grad and weight.dtype != kind:
            weight.data = weight.data.to(kind)


def save_plain(model: nn.Module, folder: Path) -> None:
    """Save a transformers model in the number type its base was stored in."""
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"expected a transformers model, not {type(model).__name__}")
    stored = model.config.dtype or torch.float32
    state = {
        name: value.to(stored) if value.is_floating_point() else value for name, value in model.state_dict().items()
    }
    model.save_pretrained(folder, state_dict=state, safe_serialization=True)
    model.config.dtype = stored
    model.config.save_pretrained(folder)
