"""The models of a recipe, opened: their configuration, their tensors by name, and their stack of layers.

name ─▶ folder (light where it is a plain folder here) ─▶ config.json, headers of the weights ─▶ Model
                                      └ with an adapter: its change is added to each row as it is read, in float32
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith import builtin
from tunesmith.core.problem import Problem
from tunesmith.merge.methods import Array, thinned
from tunesmith.merge.names import Name
from tunesmith.merge.weights import Tensor, Weights
from tunesmith.models.source import read_json

if TYPE_CHECKING:
    from tunesmith.merge.adapted import Adaption

LAYER = re.compile(r"^(?P<stack>.*?(?:layers|layer|h|blocks|block)\.)(?P<number>\d+)\.(?P<rest>.+)$")
"""Names of tensors in a layer: model.layers.3.mlp.up_proj.weight, transformer.h.3.mlp.c_fc.weight."""

COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""How configurations call the number of layers."""

EMBEDDINGS = (
    "model.embed_tokens.weight",
    "transformer.wte.weight",
    "gpt_neox.embed_in.weight",
    "transformer.word_embeddings.weight",
    "backbone.embeddings.weight",
    "model.decoder.embed_tokens.weight",
)
HEADS = ("lm_head.weight", "embed_out.weight", "output.weight", "lm_head.bias")
"""Tensors with a row a token."""


@dataclass(frozen=True)
class Stack:
    """The layers of a model: the names before their numbers, how many, and the names after."""

    prefix: str
    count: int
    rests: frozenset[str]


class Model:
    """One model of a recipe, open for reading."""

    def __init__(self, name: Name, folder: Path, tokenizer: Path, adapter: Path | None = None) -> None:
        """Read the configuration and the headers.

        Raises:
            Problem: the folder holds no whole model, or its weights cannot be merged.
        """
        self.name = name
        self.folder = folder
        self.tokenizer = tokenizer
        self.config = read_json(folder / "config.json")
        if "quantization_config" in self.config:
            raise Problem(str(folder), "is quantised, and such weights are not merged", "Take the model before that")
        self.weights = Weights(folder)
        self.adaption: Adaption | None = None
        if adapter is not None:
            from tunesmith.merge.adapted import Adaption

            self.adaption = Adaption(adapter, self)

    def __str__(self) -> str:
        return str(self.name)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its tensors, as their files order them; an adapter on tied embeddings unties them."""
        return (*self.weights.tensors, *(self.adaption.untied if self.adaption else ()))

    def tensor(self, name: str) -> Tensor | None:
        """Type and shape of a tensor: a tied head is its embedding; None where there is none."""
        return self.weights.tensors.get(self._stored(name))

    def read(self, name: str, first: int, end: int, kind: type[np.floating[Any]]) -> Array:
        """Rows first to end of a tensor with the adapter's change, in `kind`."""
        rows = self.weights.read(self._stored(name), first, end, kind)
        return rows if self.adaption is None else self.adaption.apply(name, rows, first, end)

    def sample(self, name: str, first: int, end: int, step: int, kind: type[np.floating[Any]]) -> Array:
        """Every step-th number of rows first to end of a tensor with the adapter's change, flat, in `kind`."""
        if self.adaption is None:
            return self.weights.sample(self._stored(name), first, end, step, kind)
        return thinned(self.read(name, first, end, kind), step)

    def hold(self, name: str) -> None:
        """Keep a tensor's stored numbers in memory, until they are released."""
        self.weights.hold(self._stored(name))

    def release(self, name: str) -> None:
        """Let go of a tensor's stored numbers."""
        self.weights.release(self._stored(name))

    def gather(self, name: str, rows: NDArray[np.intp], kind: type[np.floating[Any]]) -> Array:
        """Single rows of a tensor with the adapter's change, in `kind`."""
        found = self.weights.gather(self._stored(name), rows, kind)
        return found if self.adaption is None else self.adaption.pick(name, found, rows)

    @property
    def bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.bytes for tensor in self.weights.tensors.values())

    @property
    def embedding(self) -> str | None:
        """The name of the input embedding."""
        return next((name for name in EMBEDDINGS if name in self.weights.tensors), None)

    @property
    def tokens(self) -> int | None:
        """Rows of the input embedding."""
        return self.weights.tensors[self.embedding].shape[0] if self.embedding else None

    @property
    def tied(self) -> bool:
        """Whether the head is the input embedding: no file holds one."""
        return self.embedding is not None and not any(head in self.weights.tensors for head in HEADS)

    @cached_property
    def stack(self) -> Stack:
        """Its layers.

        Raises:
            Problem: there is no stack, several, or another number of layers than the configuration says.
        """
        found: dict[str, dict[int, set[str]]] = {}
        for name in self.names:
            if (parts := LAYER.match(name)) is not None:
                layers = found.setdefault(parts["stack"], {})
                layers.setdefault(int(parts["number"]), set()).add(parts["rest"])
        if len(found) != 1:
            what = f"has {len(found)} stacks of layers ({', '.join(found) or 'none'}), and one is merged"
            raise Problem(str(self), what, "Take models that hold one decoder")
        ((prefix, layers),) = found.items()
        self._check_count(layers)
        return Stack(prefix, len(layers), frozenset[str]().union(*layers.values()))

    def layer(self, number: int) -> tuple[str, ...]:
        """The names after the number, of one layer's tensors."""
        start = f"{self.stack.prefix}{number}."
        return tuple(name.removeprefix(start) for name in self.names if name.startswith(start))

    @property
    def loose(self) -> tuple[str, ...]:
        """The names of tensors outside the layers."""
        return tuple(name for name in self.names if not name.startswith(self.stack.prefix))

    @property
    def count_key(self) -> str:
        """What its configuration calls the number of layers."""
        return next((key for key in COUNTS if key in self.config), COUNTS[0])

    def _check_count(self, layers: Mapping[int, set[str]]) -> None:
        said = self.config.get(self.count_key, len(layers))
        if sorted(layers) != list(range(len(layers))) or said != len(layers):
            raise Problem(
                str(self),
                f"its files hold {len(layers)} layers (the last is number {max(layers)}), its config.json says {said}",
                "The folder is not complete, or it has layers that are not part of the stack",
            )

    def _stored(self, name: str) -> str:
        if name not in self.weights.tensors and name in HEADS and self.tied:
            return self.embedding or name
        return name


def open_models(names: Sequence[Name], stages: Mapping[str, Path]) -> tuple[Model, ...]:
    """Open the models of a recipe; stages: the folders of earlier results by their names.

    Raises:
        Problem: one cannot be found or read; `Problems` for several.
    """
    from tunesmith.core.problem import raise_all

    opened: list[Model] = []
    found: list[Problem] = []
    for name in names:
        try:
            opened.append(_open(name, stages))
        except Problem as fault:
            found.append(fault)
    raise_all("models", found)
    return tuple(opened)


def _open(name: Name, stages: Mapping[str, Path]) -> Model:
    base, tokenizer, adapter = _folders(stages.get(name.path) or name.path, name.revision)
    if name.adapter is not None:
        if adapter is not None:
            raise Problem(str(name), f"{name.path} has an adapter already", "Fold it first: tunesmith fold")
        adapter = _adapter(name)
        tokenizer = adapter if (adapter / "tokenizer.json").is_file() else tokenizer
    return Model(name, base, tokenizer, adapter)


def _folders(path: str | Path, revision: str | None) -> tuple[Path, Path, Path | None]:
    """The folders of weights, tokenizer and adapter; a plain folder is found without the heavy libraries."""
    folder = Path(path).expanduser() if isinstance(path, Path) or not path.startswith(builtin.PREFIX) else None
    folder = folder or builtin.path(str(path))
    if (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        return folder.resolve(), folder.resolve(), None
    from tunesmith.models.source import find

    found = find(str(path), revision)
    return found.base, found.tokenizer, found.adapter


def _adapter(name: Name) -> Path:
    """The folder of a named adapter, which may also be a run's."""
    from tunesmith.core.rundir import RunDir
    from tunesmith.models.source import fetch

    folder = fetch(str(name.adapter), name.adapter_revision)
    folder = RunDir(folder).model if RunDir(folder).is_run() else folder
    if not (folder / "adapter_config.json").is_file():
        raise Problem(str(name.adapter), "holds no adapter (no adapter_config.json)", "Write MODEL+ADAPTER")
    return folder
