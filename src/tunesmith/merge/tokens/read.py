"""The tokens of one model: which row of its embedding stands for which token.

    tokenizer.json, and tokens that only tokenizer_config.json names ─▶ token ─▶ id, as far as the embedding has rows

A merge adds embeddings row by row. If a row stands for different tokens in two models, their sum is noise that no check
of shapes finds; so the models' tokens are compared whenever a recipe says nothing about tokenizers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from tunesmith.core.problem import Problem
from tunesmith.models.source import read_json

WAY_OUT = "Set tokenizer_source: base (or union, or a model's name), so that embeddings are moved by token"
SLOW = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")
"""Files that hold a tokenizer where there is no tokenizer.json."""


@dataclass(frozen=True)
class Tokens:
    """The tokenizer of one model, as far as its embedding has rows.

    model: its name in the recipe; folder: where the tokenizer's files are; rows: of the embedding, None if not known.
    """

    model: str
    folder: Path
    rows: int | None

    @property
    def exist(self) -> bool:
        """Whether the folder holds a tokenizer at all."""
        return any((self.folder / name).is_file() for name in ("tokenizer.json", *SLOW))

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of tokenizer_config.json; empty where there is none."""
        file = self.folder / "tokenizer_config.json"
        return read_json(file) if file.is_file() else {}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what decides over ids: where it is the same, nothing has to be read."""
        own = self.folder / "tokenizer.json"
        files = [own] if own.is_file() else [self.folder / name for name in SLOW]
        named = sorted(_named(self.config).items(), key=str)
        digest = hashlib.sha256(json.dumps([named, self.rows]).encode())
        for file in filter(Path.is_file, files):
            digest.update(file.name.encode() + file.read_bytes())
        return digest.hexdigest()

    @cached_property
    def data(self) -> dict[str, Any]:
        """The content of tokenizer.json, with every token that only the configuration names.

        Raises:
            Problem: there is no tokenizer, or none that can be read.
        """
        file = self.folder / "tokenizer.json"
        if file.is_file():
            data = read_json(file)
            known = {text for text, _ in pieces(data)} | {token["content"] for token in data["added_tokens"]}
            if known.issuperset(_named(self.config)):
                return data
        from tunesmith.data.codec_parts import backend_of_folder  # with all that renders templates

        return json.loads(backend_of_folder(self.folder).to_str())

    @cached_property
    def ids(self) -> dict[str, int]:
        """Token to id in the order of the ids, without those that have no row."""
        found = dict(pieces(self.data)) | {token["content"]: int(token["id"]) for token in self.data["added_tokens"]}
        ordered = sorted(found.items(), key=lambda item: item[1])
        return {text: number for text, number in ordered if self.rows is None or number < self.rows}

    @cached_property
    def texts(self) -> dict[int, str]:
        """Id to token."""
        return {number: text for text, number in self.ids.items()}

    @cached_property
    def added(self) -> dict[str, dict[str, Any]]:
        """The added tokens with their settings, by text, in the order of the ids."""
        ordered = sorted(self.data["added_tokens"], key=lambda token: int(token["id"]))
        return {token["content"]: token for token in ordered if token["content"] in self.ids}


def pieces(data: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The pieces of a tokenizer.json with their ids; added tokens are among them only if the model has them too."""
    vocab: Any = data["model"]["vocab"]
    if isinstance(vocab, Mapping):
        yield from cast("Mapping[str, int]", vocab).items()
    else:
        yield from ((str(piece[0]), number) for number, piece in enumerate(vocab))


def check_alike(models: Sequence[Tokens]) -> None:
    """Compare the tokens of each model with those of the first, for merges that go row by row.

    Raises:
        Problem: a token has another id in another model, or an id stands for another token.
    """
    first, *others = models
    for other in others:
        if other.fingerprint != first.fingerprint:
            _refuse_other_ids(first, other)
            _refuse_other_tokens(first, other)


def _named(config: Mapping[str, Any]) -> dict[str, int | None]:
    """The tokens that a tokenizer_config.json names, with their ids where it says them."""
    found: dict[str, int | None] = {}
    for name, value in config.items():
        text: Any = cast("Mapping[str, Any]", value).get("content") if isinstance(value, Mapping) else value
        if name.endswith("_token") and isinstance(text, str) and text:
            found[text] = None
    listed = cast("Mapping[str, Any]", config.get("added_tokens_decoder") or {})
    return found | {token["content"]: int(number) for number, token in listed.items()}


def _refuse_other_ids(first: Tokens, other: Tokens) -> None:
    if moved := [text for text, number in other.ids.items() if first.ids.get(text, number) != number]:
        text = moved[0]
        what = (
            f"gives {len(moved)} tokens other ids than {first.model} does, such as {text!r} "
            f"({other.ids[text]}, not {first.ids[text]}): embeddings of different tokens would be mixed"
        )
        raise Problem(other.model, what, WAY_OUT)


def _refuse_other_tokens(first: Tokens, other: Tokens) -> None:
    if clash := [number for number, text in other.texts.items() if first.texts.get(number, text) != text]:
        number = clash[0]
        what = (
            f"has other tokens than {first.model} under {len(clash)} ids, such as {number} "
            f"({other.texts[number]!r}, not {first.texts[number]!r}): their embeddings would be mixed"
        )
        raise Problem(other.model, what, WAY_OUT)
