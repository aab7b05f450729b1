"""The merged vocabulary: the row that each token has in each model, and the tokenizer's files.

What is kept while tensors are merged is a table of row numbers and the files' bytes, not the models' own tokenizers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.rundir import write_atomic
from tunesmith.merge.methods import Array
from tunesmith.merge.tokens import ReadRows, TokenizerSpec, Vocabulary
from tunesmith.merge.tokens.read import Tokens, check_alike
from tunesmith.merge.tokens.sources import Row, Sources
from tunesmith.merge.tokens.union import Grown
from tunesmith.models.source import read_json

ROWS = 1024
"""Rows that are averaged at once."""
BESIDE = ("special_tokens_map.json", "chat_template.jinja", "chat_template.json")
"""Files of a tokenizer that hold no ids."""


def vocabulary(
    spec: TokenizerSpec | None,
    names: Sequence[str],
    folders: Sequence[Path],
    base: int | None,
    rows: Sequence[int | None] = (),
) -> Vocabulary | None:
    """The merged vocabulary that a recipe asks for; None where it asks for none and all models have the same.

    names, folders: of the models and their tokenizers; base: its number, None for the first; rows: of the embeddings.

    Raises:
        Problem: the tokens differ and the recipe says nothing about it, or what it says cannot be done.
    """
    sizes = rows or [_rows(folder) for folder in folders]
    models = [Tokens(*about) for about in zip(names, folders, sizes, strict=True)]
    if spec is None:
        check_alike(list(filter(lambda tokens: tokens.exist, models)) or models[:1])
        return None
    return _merged(Sources(spec, models, base or 0))


def _merged(sources: Sources) -> Merged:
    own = sources.own()
    fills = dict(sources.fills(own))
    real = np.zeros(sources.size, bool)
    real[list(sources.grown.ids.values())] = True
    lines = tuple(sources.lines(own, fills))
    folder = sources.grown.source.folder
    beside = [folder / name for name in (*BESIDE, *(["generation_config.json"] if sources.foreign else []))]
    templates = folder / "additional_chat_templates"
    copied = tuple(filter(Path.exists, (*beside, templates)))
    return Merged(sources.size, sources.settings(), lines, own, fills, real, _files(sources.grown), copied)


@dataclass(frozen=True)
class Merged(Vocabulary):
    """The vocabulary that comes out of several models' by a recipe.

    own: the id of each token in each model, -1 where it has none [models, size]; fills: the rows whose mean is taken
    there, by the token's id; real: which rows stand for a token, the others being padding [size]; files: contents by
    name; copied: what is copied beside them.
    """

    size: int
    settings: Mapping[str, Any]
    lines: tuple[str, ...]
    own: NDArray[np.intp]
    fills: Mapping[int, tuple[Row, ...]]
    real: NDArray[np.bool_]
    files: Mapping[str, bytes]
    copied: tuple[Path, ...]

    def rows(self, model: int, start: int, stop: int, read: ReadRows) -> Array:
        """Rows start to stop of the merged embedding as one model has them; padding is the mean of all others."""
        out, real = self._known(model, start, stop, read), self.real[start:stop]
        if not real.all():
            out[~real] = self._mean(model, read)
        return out

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into the folder of the merged model."""
        for path in self.copied:
            if path.is_dir():
                shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
            else:
                shutil.copyfile(path, folder / path.name)
        for name, content in self.files.items():
            write_atomic(folder / name, content)

    def _known(self, model: int, start: int, stop: int, read: ReadRows) -> Array:
        """The rows of tokens, and zeros for padding."""
        own = self.own[model, start:stop]
        have = own >= 0
        found = read(model, own[have])
        if have.all():
            return found
        out = np.zeros((len(own), *found.shape[1:]), found.dtype)
        out[have] = found
        self._fill(out, start, np.flatnonzero(~have), read)
        return out

    def _fill(self, out: Array, start: int, places: NDArray[np.intp], read: ReadRows) -> None:
        """Add to rows of zeros what they are the mean of."""
        wanted: dict[int, list[tuple[int, int, float]]] = {}
        for place in places.tolist():
            rows = self.fills.get(start + place, ())
            for model, number in rows:
                wanted.setdefault(model, []).append((place, number, 1 / len(rows)))
        for model, parts in wanted.items():
            rows, ids, shares = zip(*parts, strict=True)
            share = np.array(shares, out.dtype).reshape(-1, *[1] * (out.ndim - 1))
            out[list(rows)] += read(model, np.array(ids, np.intp)) * share

    def _mean(self, model: int, read: ReadRows) -> Any:
        """The mean of all rows that stand for a token."""
        total: Any = 0.0
        for start in range(0, self.size, ROWS):
            stop = min(start + ROWS, self.size)
            rows = self._known(model, start, stop, read)[self.real[start:stop]]
            total = total + rows.sum(axis=0, dtype=np.float64)
        return total / self.real.sum()


def _files(grown: Grown) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json, in the layout that transformers 4 and 5 both read."""
    config = {name: value for name, value in grown.source.config.items() if name != "auto_map"}
    if config.get("tokenizer_class") in (None, "TokenizersBackend"):
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if "added_tokens_decoder" in config:
        config["added_tokens_decoder"] = dict(map(_listed, grown.data["added_tokens"]))
    return {"tokenizer.json": _json(grown.data), "tokenizer_config.json": _json(config)}


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()


def _listed(token: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """An added token as tokenizer_config.json lists it."""
    return str(token["id"]), {name: value for name, value in token.items() if name != "id"}


def _rows(folder: Path) -> int | None:
    """The rows of the embedding beside a tokenizer, by its config.json."""
    file = folder / "config.json"
    said = read_json(file).get("vocab_size") if file.is_file() else None
    return said if isinstance(said, int) else None
