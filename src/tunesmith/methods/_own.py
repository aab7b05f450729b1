"""Adapters of tunesmith's own: parts put on a model, for methods that no kept library has.

    base ── attach ─▶ Adapted ── save ─▶ adapter_model.safetensors    what learned, by name
               ▲                         adapter_config.json          the base's name, the task, the method with options
               └───────── adopt, wear ◀──┘

The files have the names and the keys of PEFT's, so that base and task are found in the same way; where PEFT names its
own type, `tunesmith_method` holds the method as it stands in a run file. Every module that is put on a model is a
`Part`, and switching all parts off gives back the untouched model, bit for bit.
"""

from __future__ import annotations

import copy
import json
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.core.plugins import build
from tunesmith.core.problem import Problem
from tunesmith.methods import Method, hold_in_float32, trainable
from tunesmith.methods._through_peft import task
from tunesmith.models.heads import head_parts
from tunesmith.models.load import keep_head

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEY = "tunesmith_method"


class Part(nn.Module):
    """A module that a method puts on a model, and that can be switched off."""

    on: bool = True

    def own(self) -> Iterator[nn.Parameter]:
        """Its weights, without those of a part of the base that it holds."""
        return self.parameters()


class NewHead(Part):
    """A copy of a part of the model's head that learns; the first one answers when it is off."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.first = head
        self.learned = copy.deepcopy(head).requires_grad_()

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the part of the model computes."""
        return (self.learned if self.on else self.first)(*inputs, **options)


class Adapted(nn.Module):
    """A transformers model with parts on it, to be used as PEFT's wrapper is.

    replaced: weights of the base that hold learned values, each with its first ones; none while training.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.replaced: list[tuple[nn.Parameter, Tensor]] = []

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the model computes with its parts."""
        return self.model(*inputs, **options)

    def generate(self, *inputs: Any, **options: Any) -> Any:
        """transformers' `generate` of the model with its parts."""
        return self.model.generate(*inputs, **options)  # type: ignore[operator]

    def get_base_model(self) -> PreTrainedModel:
        """The transformers model, whose modules hold the parts."""
        return self.model

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The untouched model, bit for bit."""
        parts = [part for part in self.model.modules() if isinstance(part, Part) and part.on]
        for part in parts:
            part.on = False
        self._swap()
        try:
            yield
        finally:
            self._swap()
            for part in parts:
                part.on = True

    def _swap(self) -> None:
        for number, (weight, other) in enumerate(self.replaced):
            self.replaced[number], weight.data = (weight, weight.data), other


class OwnMethod(Method):
    """A method whose parts are put on the model and saved in tunesmith's own adapter format."""

    changes_base: ClassVar[bool] = False
    not_folded: ClassVar[str]
    """Why its parts cannot be melted into plain weights."""
    free: ClassVar[frozenset[str]] = frozenset()
    """Options that may be others when a saved adapter is gone on with."""

    @property
    def reversible(self) -> bool:
        return True

    @abstractmethod
    def attach(self, model: PreTrainedModel) -> None:
        """Put the parts on a model whose weights are all frozen, and let those of them learn that should.

        Raises:
            Problem: an option does not fit this model.
        """

    def apply(self, model: PreTrainedModel) -> nn.Module:
        model.requires_grad_(False)
        for path, head in head_parts(model).items():
            model.set_submodule(path, NewHead(head))
        self.attach(model)
        hold_in_float32(model)
        return Adapted(model)

    def adopt(self, model: PreTrainedModel, adapter: Path) -> nn.Module:
        saved = saved_method(adapter)
        if not isinstance(saved, type(self)):
            kind = "of PEFT" if saved is None else f"of the method {saved.name()}"
            raise Problem(str(adapter), f"is an adapter {kind}, not of {self.name()}", "Go on with the method it has")
        own, found = self.model_dump(), saved.model_dump()
        for option in own.keys() - self.free:
            if own[option] != found[option]:
                raise Problem(
                    f"method.{self.name()}.{option}",
                    f"is {own[option]}, and the adapter that is gone on with has {found[option]}",
                    f"Set {option}: {found[option]}",
                )
        trained = self.apply(model)
        load_learned(trained, adapter)
        return trained

    def wear(self, model: PreTrainedModel, adapter: Path) -> nn.Module:
        """The model with a saved adapter on it, for use only: in the model's number type, and nothing learns.

        Where weights of the base learned, their first values are kept beside, so that the base can be compared.

        Raises:
            Problem: the adapter's weights are not those that this model needs.
        """
        kind = model.dtype
        trained = adapted(self.apply(model))
        parts, learned = _part_weights(model), list(trainable(trained).values())
        first = [(weight, weight.data.to(kind, copy=True)) for weight in learned if id(weight) not in parts]
        load_learned(trained, adapter)
        for weight in learned:
            weight.data = weight.data.to(kind)
        trained.replaced = first
        return trained.requires_grad_(False)

    def off(self, model: nn.Module) -> AbstractContextManager[object]:
        return adapted(model).disable_adapter() if self.reversible else super().off(model)

    def save(self, model: nn.Module, folder: Path) -> None:
        base = adapted(model).model
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_stored(base), folder / WEIGHTS, metadata={"format": "pt"})
        config = {
            "base_model_name_or_path": base.name_or_path,
            "task_type": task(base).value,
            KEY: {self.name(): self.model_dump(mode="json")},
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        keep_head(base, folder)

    def fold(self, model: nn.Module) -> PreTrainedModel:
        raise self.no_fold()

    def no_fold(self) -> Problem:
        """Why there are no plain weights that compute the same."""
        return Problem(f"method {self.name()}", self.not_folded, "Use the base and the adapter together")


def saved_method(folder: Path) -> OwnMethod | None:
    """The method of an adapter in tunesmith's own format, with its options; None for an adapter of PEFT.

    Raises:
        Problem: the configuration cannot be read, or names a method that this version does not have.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        value = config.get(KEY)
    except (OSError, ValueError, AttributeError) as error:
        raise Problem(str(folder / CONFIG), f"cannot be read ({error})", "Save the adapter again") from error
    if value is None:
        return None
    try:
        found = build("method", value)
    except Problem as problem:
        raise Problem(str(folder / CONFIG), f"{KEY}: {problem}", "It was written by another version") from problem
    if not isinstance(found, OwnMethod):
        raise Problem(str(folder / CONFIG), f"{KEY} names {found.name()}, which saves no adapter of this kind")
    return found


def load_learned(trained: nn.Module, folder: Path) -> None:
    """Put saved values into the weights that learn.

    Raises:
        Problem: the file is damaged, or holds other weights than the model needs.
    """
    own = trainable(adapted(trained).model)
    try:
        saved = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise Problem(str(folder / WEIGHTS), f"cannot be read ({error})", "Save the adapter again") from error
    odd = sorted(saved.keys() ^ own.keys()) or [name for name in own if own[name].shape != saved[name].shape]
    if odd:
        raise Problem(
            str(folder),
            f"this adapter does not fit its base ({len(odd)} weights are missing, unknown or of another shape, "
            f"such as {odd[0]})",
            "Take the base it was trained on",
        )
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(saved[name])


def adapted(model: nn.Module) -> Adapted:
    """The model as a wrapper with parts on it."""
    if not isinstance(model, Adapted):
        raise TypeError(f"expected a model with parts on it, not {type(model).__name__}")
    return model


def _stored(model: PreTrainedModel) -> dict[str, Tensor]:
    """What learned, as it is written: parts as they are, weights of the base in the number type it is stored in."""
    parts = _part_weights(model)
    kind = model.config.dtype or torch.float32
    return {
        name: (weight if id(weight) in parts else weight.to(kind)).detach().cpu().contiguous()
        for name, weight in trainable(model).items()
    }


def _part_weights(model: nn.Module) -> set[int]:
    """Identities of the weights that belong to parts and not to the base."""
    return {id(weight) for part in model.modules() if isinstance(part, Part) for weight in part.own()}
