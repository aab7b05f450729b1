"""What a merged model's folder holds beside its weights: configuration, tokenizer, template, record and card."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tunesmith import __version__
from tunesmith.core.problem import Problem
from tunesmith.core.rundir import write_atomic, write_json
from tunesmith.merge.inputs import HEADS, Model
from tunesmith.merge.layout import Layout, Piece
from tunesmith.merge.numbers import FLOATS, WORDS
from tunesmith.merge.tokens import Vocabulary
from tunesmith.models.source import read_json

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "added_tokens.json",
    "merges.txt",
    "vocab.json",
    "chat_template.jinja",
)

RECORD = "merge.json"
"""The record of a merge for programs; the card is for people."""


@dataclass(frozen=True)
class Child:
    """The result of one recipe before it is written: its layout with all pieces."""

    layout: Layout
    pieces: Sequence[Piece]

    @property
    def models(self) -> Sequence[Model]:
        """The models that it is made of."""
        return self.layout.models

    @property
    def vocabulary(self) -> Vocabulary | None:
        """Its tokens, where embeddings are moved by token."""
        return self.layout.vocabulary

    @property
    def text(self) -> str:
        """The recipe as it is written."""
        return self.layout.recipe.text

    def config(self) -> dict[str, Any]:
        """config.json: the donor's, with the layers, the vocabulary and the number type that the result has.

        Raises:
            Problem: the configuration says something by layer that cannot be carried over.
        """
        donor = self.layout.donor
        value = {name: part for name, part in donor.config.items() if name not in ("torch_dtype", "auto_map")}
        value["dtype"] = usual_type(self.pieces)
        if self.layout.layered:
            value |= self._by_layer(donor)
        names = {piece.name for piece in self.pieces}
        if names & set(HEADS):
            untied = any(model.tied or not model.config.get("tie_word_embeddings") for model in self.layout.models)
            value["tie_word_embeddings"] = not untied
        return value | dict(self.layout.vocabulary.settings if self.layout.vocabulary else {})

    def write(self, folder: Path) -> None:
        """Write configuration, tokenizer and template."""
        write_json(folder / "config.json", self.config())
        donor = self.layout.donor
        copy_files(donor.folder, folder, ["generation_config.json"])
        if self.layout.vocabulary is None:
            copy_files(donor.tokenizer, folder, TOKENIZER)
        else:
            self.layout.vocabulary.save(folder)
        if (template := self._template()) is not None:
            _set_template(folder, template)

    def record(self, key: str, seed: int, hashes: Mapping[str, str]) -> dict[str, Any]:
        """What was merged, how, and what came out, as plain data."""
        recipe = self.layout.recipe
        return {
            "tunesmith": __version__,
            "key": key,
            "method": recipe.method.name(),
            "seed": seed,
            "recipe": recipe.text,
            "models": [{"name": str(model), "folder": str(model.folder)} for model in self.layout.models],
            "tensors": len(self.pieces),
            "sha256": dict(hashes),
        }

    def _by_layer(self, donor: Model) -> dict[str, Any]:
        """Settings that count the layers or say something of each."""
        layers = self.layout.layers
        value: dict[str, Any] = {donor.count_key: len(layers)}
        for key, said in donor.config.items():
            if not isinstance(said, list) or "layer" not in key:
                continue
            if len(cast("list[Any]", said)) == donor.stack.count:
                value[key] = [model.config[key][number] for model, number in layers]
            elif said and [number for _, number in layers] != list(range(donor.stack.count)):
                what = f"its config.json says {key}: {said}, which cannot be carried over to other layers"
                raise Problem(str(donor), what, "Merge all layers with models instead of slices")
        return value

    def _template(self) -> str | None:
        wish = self.layout.recipe.chat_template
        if wish is None:
            return None
        if wish == "auto":
            found = Counter(text for model in self.layout.models if (text := template_in(model.tokenizer)))
            return found.most_common(1)[0][0] if found else None
        if wish == "chatml":
            from tunesmith.data.template import CHATML

            return CHATML
        return wish


def usual_type(pieces: Sequence[Piece]) -> str:
    """The number type of most of the weights, as config.json names it."""
    sizes: Counter[str] = Counter()
    for piece in pieces:
        sizes[piece.stored] += piece.bytes if piece.stored in FLOATS else 0
    return WORDS[sizes.most_common(1)[0][0] if sizes.total() else "F32"]


def template_in(folder: Path) -> str | None:
    """The chat template of a tokenizer's folder, None where it has none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8").strip()
    config = folder / "tokenizer_config.json"
    value = read_json(config).get("chat_template") if config.is_file() else None
    return value.strip() if isinstance(value, str) else None


def _set_template(folder: Path, text: str) -> None:
    write_atomic(folder / "chat_template.jinja", (text.rstrip() + "\n").encode())
    file = folder / "tokenizer_config.json"
    if file.is_file():
        write_json(file, {name: value for name, value in read_json(file).items() if name != "chat_template"})


def copy_files(source: Path, folder: Path, names: Sequence[str]) -> None:
    """Copy those of the files that are there."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
