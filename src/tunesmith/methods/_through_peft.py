"""What all methods share whose layers are PEFT's: put on, gone on with, switched off, saved, folded, refused.

    options ─▶ PEFT's configuration ─▶ layers beside, around or inside the base's frozen ones
      words: the option of each setting of PEFT

PEFT warns where it passes over a setting; here such a warning is a refusal.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import peft
from peft import PeftConfig, PeftModel, PeftType, TaskType, get_peft_model
from pydantic import field_validator
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.core.problem import Problem, nearest
from tunesmith.methods import Method, hold_in_float32
from tunesmith.models.heads import HeadSpec, head_parts
from tunesmith.models.load import keep_head
from tunesmith.models.unloaded import OF_LAYERS, unloaded

ALL = "all-linear"
PACKAGE = str(Path(peft.__file__).parent)


class ThroughPeft(Method):
    """A method whose layers are PEFT's."""

    changes_base: ClassVar[bool] = False
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear,)
    """Layers that it can be put on; Conv1D, which GPT-2 has, holds its weights transposed."""
    words: ClassVar[Mapping[str, str]] = {}
    """PEFT's word for each option that is passed on as it is."""
    free: ClassVar[frozenset[str]] = frozenset({"dropout"})
    """Options of these that may change when an adapter is gone on with."""
    rank_option: ClassVar[str] = ""
    """The option that no side of a layer may be smaller than, if there is one."""
    harmless: ClassVar[tuple[str, ...]] = (
        "fan_in_fan_out is set to",  # PEFT sets it by the kind of each layer, as it must be
    )
    """How those warnings of PEFT begin that pass over nothing."""

    targets: tuple[str, ...] = (ALL,)
    """Layers that get a change, by the end of their names, such as `q_proj`; `all-linear` for all but the head."""

    @field_validator("targets", mode="before", json_schema_input_type=tuple[str, ...] | str)
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @property
    def reversible(self) -> bool:
        return True

    @abstractmethod
    def _kind(self) -> type[PeftConfig]:
        """PEFT's configuration."""

    def _more(self, model: PreTrainedModel) -> dict[str, Any]:
        """Settings of PEFT beside those of `words`."""
        return {}

    def _check_layer(self, name: str, layer: nn.Module) -> None:
        """Refuse a layer that the options do not fit."""

    def apply(self, model: PreTrainedModel) -> nn.Module:
        self._check(model)
        settings = {word: getattr(self, option) for option, word in self.words.items()}
        settings |= {"target_modules": self._target_modules(model), **self._more(model)}
        if heads := sorted(part.rpartition(".")[2] for part in head_parts(model)):
            settings["modules_to_save"] = heads
        trained = self._put_on(model, self._kind()(task_type=task(model), **settings))
        self._check_head(model)
        hold_in_float32(trained)
        return trained

    def adopt(self, model: PreTrainedModel, adapter: Path) -> nn.Module:
        saved = PeftConfig.from_pretrained(str(adapter))
        if type(saved) is not self._kind():
            raise Problem(
                str(adapter),
                f"is a {saved.peft_type} adapter, and the method {self.name()} makes {self._kind().__name__[:-6]}",
                "Fold it first (tunesmith fold), or go on with the method that made it",
            )
        self._check_adopted(model, saved)
        for option in self.free & set(self.words):
            setattr(saved, self.words[option], getattr(self, option))
        with heeded(str(adapter), self.harmless), unloaded(*OF_LAYERS):
            trained = PeftModel.from_pretrained(model, str(adapter), is_trainable=True, config=saved)
        hold_in_float32(trained)
        return trained

    def off(self, model: nn.Module) -> AbstractContextManager[object]:
        return switched_off(wrapped(model)) if self.reversible else super().off(model)

    def save(self, model: nn.Module, folder: Path) -> None:
        self._write(wrapped(model), folder)

    def fold(self, model: nn.Module) -> PreTrainedModel:
        return melted(wrapped(model))

    def _write(self, trained: PeftModel, folder: Path, **more: Any) -> None:
        with heeded(str(folder), self.harmless):
            trained.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False, **more)
        keep_head(trained.get_base_model(), folder)  # type: ignore[arg-type]
        (folder / "README.md").unlink(missing_ok=True)

    def _put_on(self, model: PreTrainedModel, config: PeftConfig) -> PeftModel:
        try:
            with heeded(f"method.{self.name()}", self.harmless), unloaded(*OF_LAYERS):
                return get_peft_model(model, config)  # type: ignore[return-value]
        except (ValueError, TypeError, NotImplementedError) as error:
            raise Problem(
                f"method.{self.name()}",
                f"PEFT refuses it for {type(model).__name__} ({str(error).splitlines()[0]})",
                "Name other targets or set other options, or use the method lora, freeze or full",
            ) from error

    def _target_modules(self, model: PreTrainedModel) -> str | list[str]:
        return ALL if ALL in self.targets else list(self.targets)

    def _check(self, model: PreTrainedModel) -> None:
        """Refuse options that do not fit a model, with what would."""
        for target in self.targets:
            chosen = self._chosen(model, target)
            self._check_ends(model, chosen)
            self._check_rank(target, chosen)
            for name, layer in chosen.items():
                self._check_layer(name, layer)

    def _check_rank(self, target: str, chosen: Mapping[str, nn.Module]) -> None:
        """Refuse a rank that a layer cannot have; of `all-linear` a few may be smaller, but not all."""
        if not self.rank_option:
            return
        rank, sides = getattr(self, self.rank_option), {name: _sides(layer) for name, layer in chosen.items()}
        pick = max if target == ALL else min
        name, shape = pick(sides.items(), key=lambda found: min(found[1]))
        if rank > min(shape):
            raise Problem(
                f"method.{self.name()}.{self.rank_option}",
                f"{rank} is more than {name} can have, a layer of {shape}",
                f"Use {min(shape)} or less",
            )

    def _chosen(self, model: PreTrainedModel, target: str) -> dict[str, nn.Module]:
        """The layers that a target means.

        Raises:
            Problem: there are none, or they are of another kind; the hint names what would do.
        """
        usual = self._usual(model)
        if target == ALL and usual:
            return usual
        found: dict[str, nn.Module] = dict(model.named_modules())
        found = {name: layer for name, layer in found.items() if f".{name}".endswith(f".{target}")}
        wrong = {type(layer).__name__ for layer in found.values() if not self._fits(layer)}
        if found and not wrong:
            return found
        if not usual:
            raise self._no_layers(model)
        what = f"{target!r} is a {', '.join(sorted(wrong))}" if wrong else f"no layer's name ends in {target!r}"
        raise Problem(f"method.{self.name()}.targets", what, nearest(target, {n.rpartition(".")[2] for n in usual}))

    def _fits(self, layer: nn.Module) -> bool:
        """Whether it can be put on a layer."""
        return isinstance(layer, self.kinds)

    def _usual(self, model: PreTrainedModel) -> dict[str, nn.Module]:
        """What `all-linear` stands for."""
        return {name: layer for name, layer in inner_layers(model).items() if self._fits(layer)}

    def _no_layers(self, model: PreTrainedModel) -> Problem:
        own = {type(layer).__name__ for layer in inner_layers(model).values()}
        return Problem(
            f"method.{self.name()}",
            f"is not for the layers of {type(model).__name__}, which are of the kind {', '.join(sorted(own))}",
            "Use the method lora, which takes these too, or freeze or full",
        )

    def _check_ends(self, model: PreTrainedModel, chosen: Mapping[str, nn.Module]) -> None:
        """Refuse a head that learns anyway, and an end of the model that shares its weights with the other."""
        where, heads = f"method.{self.name()}.targets", list(head_parts(model))
        tied = model.config.get_text_config().tie_word_embeddings or getattr(model.config, "tie_word_embeddings", False)
        ends = _ends(model) if tied else []
        for name, layer in chosen.items():
            if any(name == part or name.startswith(f"{part}.") for part in heads):
                raise Problem(where, f"{name} is the head, which learns whole", "Leave it out")
            if any(layer is end for end in ends):
                what = f"{name} shares its weights with the other end of the model, so a change of it cannot be folded"
                raise Problem(where, what, "Leave it out, or use the method freeze with names")

    def _check_head(self, model: PreTrainedModel) -> None:
        """Refuse what would leave a new head, for labels or a score, as random as it was made."""
        heads = head_parts(model).values()
        if not all(any(weight.requires_grad for weight in head.parameters()) for head in heads):
            raise Problem(f"method.{self.name()}", "would freeze the head that the objective needs", "Use another one")

    def _check_adopted(self, model: PreTrainedModel, saved: PeftConfig) -> None:
        """An adapter keeps the shape it was made with; `all-linear` stands for the layers that it has."""
        pairs = {
            option: (getattr(self, option), getattr(saved, word))
            for option, word in self.words.items()
            if option not in self.free
        }
        wanted, own = self._target_modules(model), getattr(saved, "target_modules", None)
        if not isinstance(wanted, str) and not isinstance(own, str):
            pairs["targets"] = (sorted(wanted), sorted(own or ()))
        self._compare({**pairs, **self._adopted(model, saved)})

    def _adopted(self, model: PreTrainedModel, saved: PeftConfig) -> dict[str, tuple[Any, Any]]:
        """Further options beside what a saved adapter has in their place."""
        return {}

    def _compare(self, pairs: Mapping[str, tuple[Any, Any]]) -> None:
        for option, (wanted, found) in pairs.items():
            if wanted != found:
                raise Problem(
                    f"method.{self.name()}.{option}",
                    f"is {wanted}, and the adapter that is gone on with has {found}",
                    f"Set {option}: {found}, or fold the adapter first and train a new one",
                )


def task(model: PreTrainedModel) -> TaskType:
    """What a model is for, in PEFT's words."""
    kind = HeadSpec.of(model).kind
    if kind != "lm":
        return {"score": TaskType.SEQ_CLS, "tags": TaskType.TOKEN_CLS, "states": TaskType.FEATURE_EXTRACTION}[kind]
    return TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM


def inner_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The matrices between the ends of a model, by name: neither embeddings nor a head."""
    ends = [model.get_output_embeddings(), *(part for head in head_parts(model).values() for part in head.modules())]
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and not any(layer is end for end in ends)
    }


def wrapped(model: nn.Module) -> PeftModel:
    """The model as what PEFT made of it."""
    if not isinstance(model, PeftModel):
        raise TypeError(f"expected a PEFT model, not {type(model).__name__}")
    return model


def melted(trained: PeftModel) -> PreTrainedModel:
    """The plain model, with the change in its weights.

    Raises:
        Problem: PEFT cannot write this change as weights.
    """
    kind = f"{PeftType(trained.peft_config['default'].peft_type).value} adapter"
    try:
        with heeded(kind):
            return trained.merge_and_unload()  # type: ignore[return-value, operator]
    except (ValueError, NotImplementedError, AttributeError) as error:
        raise Problem(
            kind, f"cannot be folded ({str(error).splitlines()[0]})", "Use the base and the adapter together"
        ) from error


@contextmanager
def heeded(place: str, harmless: tuple[str, ...] = ()) -> Iterator[None]:
    """No warning of PEFT is passed over, but for those that begin in a known way: what it would leave out is refused.

    Raises:
        Problem: PEFT warned of something.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for found in caught:
        text = " ".join(str(found.message).split())
        ours = issubclass(found.category, UserWarning) and found.filename.startswith(PACKAGE)
        if ours and not text.startswith(harmless):
            raise Problem(place, f"PEFT would pass over something: {text}", "Set options that can be kept")
        if not ours:
            warnings.warn_explicit(found.message, found.category, found.filename, found.lineno)


@contextmanager
def switched_off(trained: PeftModel) -> Iterator[None]:
    """The model without its adapter; afterwards the same weights learn as before.

    PEFT lets everything of an adapter learn that is switched on again, also what was frozen before.
    """
    learned = [weight.requires_grad for weight in trained.parameters()]
    with trained.disable_adapter():
        yield
    for weight, learns in zip(trained.parameters(), learned, strict=True):
        weight.requires_grad_(learns)


def _sides(layer: nn.Module) -> tuple[int, int]:
    """Rows and columns of a layer's matrix, whatever it is held in."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    rows, columns = layer.weight.shape  # type: ignore[union-attr, misc]
    return int(rows), int(columns)


def _ends(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that hold the embeddings and what shares a weight with them."""
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    weights: list[Tensor] = [end.weight for end in ends if end is not None]
    return [
        module
        for module in model.modules()
        if module in ends or any(getattr(module, "weight", None) is weight for weight in weights)
    ]
