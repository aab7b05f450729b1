"""Opening a model to use it: the base, its adapter on it, and the way to switch the adapter off."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from tunesmith.core.problem import Problem
from tunesmith.core.run import ModelSpec
from tunesmith.data.tokenizer import Codec
from tunesmith.methods._own import Adapted, saved_method
from tunesmith.models.ancestor import ancestor_of
from tunesmith.models.heads import HeadSpec
from tunesmith.models.load import LM, Loaded, load
from tunesmith.models.policy import Policy
from tunesmith.models.probe import check_ancestor
from tunesmith.models.source import find, head_of

DOES = {
    "lm": "writes answers and scores none",
    "score": "scores answers and writes none",
    "tags": "labels the words of texts and writes none",
    "states": "gives vectors for texts and writes none",
}
"""What a model with each kind of head does, for people."""
ADAPTER_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class Opened:
    """A model in evaluation mode. trained: the model itself, or a wrapper of it with the adapter on."""

    loaded: Loaded
    trained: nn.Module

    @property
    def model(self) -> PreTrainedModel:
        return self.loaded.model

    @property
    def codec(self) -> Codec:
        return self.loaded.codec

    @property
    def adapted(self) -> bool:
        """Whether an adapter is on the model."""
        return self.trained is not self.loaded.model

    def off(self) -> AbstractContextManager[object]:
        """A context in which the base answers; where there is no adapter, the model as it is."""
        return self.trained.disable_adapter() if isinstance(self.trained, PeftModel | Adapted) else nullcontext()

    def policy(self) -> Policy:
        """The model as a policy, whose reference is the model without its adapter."""
        off: Callable[[], AbstractContextManager[object]] | None = self.off if self.adapted else None
        forest = self.loaded.verdict.forest
        return Policy(self.model, forest=forest, trained=self.trained, off=off, codec=self.codec)


def open_model(spec: ModelSpec, head: HeadSpec = LM) -> Opened:
    """Load a model by its specification, with the adapter that a run or adapter folder adds to its base.

    head: the last layer that is wanted, by default one that writes.

    Raises:
        Problem: as `models.load.load`, or the adapter does not fit its base.
    """
    found = find(spec.path, spec.revision)
    own = head_of(found).kind
    if own != head.kind and (found.adapter is not None or head.kind == "lm"):
        what = f"this {'model' if found.adapter is None else 'adapter'} {DOES[own]}"
        raise Problem(spec.path, what, "Measure it: tunesmith evaluate")
    loaded = load(spec, head)
    adapter = loaded.found.adapter
    trained = loaded.model if adapter is None else put_on(loaded.model, adapter)
    trained.eval()
    return Opened(loaded, trained)


def put_on(model: PreTrainedModel, folder: Path) -> nn.Module:
    """The model with an adapter on it, PEFT's or tunesmith's own, for use only: nothing of it requires gradients.

    Raises:
        Problem: the adapter is of a kind that PEFT does not have, or its weights are not those this model needs.
    """
    own = saved_method(folder)
    if own is not None:
        return own.wear(model, folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what these warn of is checked below, and refused
            adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
    except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
        raise _misfit(folder, str(error).strip().splitlines()[0] if str(error).strip() else repr(error)) from error
    _check_names(adapted, folder)
    if ancestor_of(adapted).length and (reason := check_ancestor(model, adapted)) is not None:
        raise _misfit(folder, reason)
    return adapted


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode and without gradients, then as it was."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _check_names(adapted: PeftModel, folder: Path) -> None:
    needed = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    try:
        with safe_open(folder / ADAPTER_FILE, framework="pt") as file:
            present = set(file.keys())
    except (SafetensorError, OSError) as error:
        raise Problem(str(folder / ADAPTER_FILE), f"cannot be read ({error})", "Save the adapter again") from error
    if missing := sorted(needed - present):
        raise _misfit(folder, f"{len(missing)} of its weights are missing, such as {missing[0]}")
    if unknown := sorted(present - needed):
        raise _misfit(folder, f"{len(unknown)} weights have no place in the model, such as {unknown[0]}")


def _misfit(folder: Path, reason: str) -> Problem:
    return Problem(str(folder), f"this adapter does not fit its base ({reason})", "Take the base it was trained on")
