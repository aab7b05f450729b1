"""The merged vocabulary: its tokenizer, and the row that each token has in each model.

    own row       the token's row in that model, wherever it stood
    another's     where the model lacks the token, or is forced: the row of the one model that has it, of the base, or
                  the mean of all that have it; a row or zeros that the recipe names; zeros if nobody has it
    padding       the mean of all rows of that model

These are the rules of mergekit's recipes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.problem import Problem, nearest
from tunesmith.core.rundir import write_atomic, write_json
from tunesmith.merge.methods import Array
from tunesmith.merge.names import read_name
from tunesmith.merge.tokens import ModelToken, ReadRows, TokenizerSpec, TokenSpec, Vocabulary, Zero
from tunesmith.merge.tokens.read import Tokens, check_alike
from tunesmith.merge.tokens.union import Grown, grow
from tunesmith.models.source import read_json

ROWS = 1024
"""Rows that are averaged at once."""
BESIDE = ("special_tokens_map.json", "chat_template.jinja", "chat_template.json")
"""Files of a tokenizer that hold no ids."""

Row = tuple[int, int]
"""(number of the model, id of its own token)."""


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
    return Merged(spec, models, base or 0)


class Merged(Vocabulary):
    """The vocabulary that comes out of several models' by a recipe."""

    def __init__(self, spec: TokenizerSpec, models: Sequence[Tokens], base: int) -> None:
        """Raises: Problem: a model or token that the recipe names does not exist."""
        self._models = models
        self._base = base
        self._tokenizer = self._grown(spec)
        ids = self._tokenizer.ids
        step = spec.pad_to_multiple_of or 1
        self.size = -(-(1 + max(ids.values())) // step) * step
        self._own = np.full((len(models), self.size), -1, np.intp)
        for own, tokens in zip(self._own, models, strict=True):
            common = [(number, tokens.ids[text]) for text, number in ids.items() if text in tokens.ids]
            own[[number for number, _ in common]] = [number for _, number in common]
        self._fills = dict(self._filled(spec))
        self._real = np.zeros(self.size, bool)
        self._real[list(ids.values())] = True
        self.settings = self._settings()
        self.lines = tuple(self._lines())

    def rows(self, model: int, start: int, stop: int, read: ReadRows) -> Array:
        """Rows start to stop of the merged embedding as one model has them, filled where it lacks the token."""
        out, real = self._known(model, start, stop, read), self._real[start:stop]
        if not real.all():
            out[~real] = self._mean(model, read)
        return out

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into the folder of the merged model."""
        source, data = self._tokenizer.source, self._tokenizer.data
        for name in BESIDE:
            if (source.folder / name).is_file():
                shutil.copyfile(source.folder / name, folder / name)
        more = source.folder / "additional_chat_templates"
        if more.is_dir():
            shutil.copytree(more, folder / more.name, dirs_exist_ok=True)
        write_atomic(folder / "tokenizer.json", (json.dumps(data, ensure_ascii=False, indent=1) + "\n").encode())
        write_json(folder / "tokenizer_config.json", self._config())
        if self._foreign and (source.folder / "generation_config.json").is_file():
            shutil.copyfile(source.folder / "generation_config.json", folder / "generation_config.json")

    @property
    def _foreign(self) -> bool:
        """Whether the tokenizer is another model's than the base's."""
        return self._tokenizer.source is not self._models[self._base]

    def _grown(self, spec: TokenizerSpec) -> Grown:
        source = self._models[self._base]
        if spec.source not in ("union", "base"):
            source = self._models[self._number(spec.source, "tokenizer.source", ("union", "base"))]
        others = [tokens for tokens in self._models if tokens is not source] if spec.source == "union" else []
        return grow(source, others, spec.tokens)

    def _number(self, name: str, place: str, also: Sequence[str] = ()) -> int:
        """The number of a model that the recipe names."""
        known = [tokens.model for tokens in self._models]
        text = str(read_name(name, place))
        if text not in known:
            raise Problem(place, f"{name!r} is no model of this recipe", nearest(name, [*known, *also]))
        return known.index(text)

    def _filled(self, spec: TokenizerSpec) -> Iterator[tuple[int, tuple[Row, ...]]]:
        """The rows whose mean is taken where a model has none of its own, by the id of the token; none for zeros."""
        for text, number in self._tokenizer.ids.items():
            about = spec.tokens.get(text, TokenSpec())
            full = bool((self._own[:, number] >= 0).all())
            if about.source is None and about.force:
                what = "force has no effect without a source"
                raise Problem(f"tokenizer.tokens.{text}", what, "Say which embedding, or take force out")
            if about.source is not None and full and not about.force:
                what = "has no effect: every model has this token"
                raise Problem(f"tokenizer.tokens.{text}.source", what, "Add force: true, or take it out")
            if about.force:
                self._own[:, number] = -1
            if about.force or not full:
                yield number, tuple(self._rows_for(text, about))

    def _rows_for(self, text: str, about: TokenSpec) -> Iterator[Row]:
        place = f"tokenizer.tokens.{text}.source"
        if isinstance(about.source, Zero):
            return
        if isinstance(about.source, ModelToken):
            yield self._row(about.source, place)
        elif about.source is not None:
            model = self._number(about.source, place)
            yield self._row(ModelToken(kind="model_token", model=about.source, token=text), place, model)
        else:
            have = [(model, tokens.ids[text]) for model, tokens in enumerate(self._models) if text in tokens.ids]
            bases = [row for row in have if row[0] == self._base]
            yield from bases or have

    def _row(self, source: ModelToken, place: str, model: int | None = None) -> Row:
        """One row of one model by its token."""
        model = self._number(source.model, f"{place}.model") if model is None else model
        tokens = self._models[model]
        if (source.token is None) == (source.token_id is None):
            raise Problem(place, "needs one of token and token_id", "Name the token once")
        if source.token is not None:
            if source.token not in tokens.ids:
                hint = nearest(source.token, list(tokens.added) or list(tokens.ids)[:20])
                raise Problem(place, f"{tokens.model} has no token {source.token!r}", hint)
            return model, tokens.ids[source.token]
        assert source.token_id is not None
        if tokens.rows is not None and source.token_id >= tokens.rows:
            raise Problem(f"{place}.token_id", f"{tokens.model} has {tokens.rows} rows, and this is {source.token_id}")
        return model, source.token_id

    def _known(self, model: int, start: int, stop: int, read: ReadRows) -> Array:
        """The rows of tokens, and zeros for padding."""
        own = self._own[model, start:stop]
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
            sources = self._fills.get(start + place, ())
            for model, number in sources:
                wanted.setdefault(model, []).append((place, number, 1 / len(sources)))
        for model, parts in wanted.items():
            rows, ids, shares = zip(*parts, strict=True)
            share = np.array(shares, out.dtype).reshape(-1, *[1] * (out.ndim - 1))
            out[list(rows)] += read(model, np.array(ids, np.intp)) * share

    def _mean(self, model: int, read: ReadRows) -> Any:
        """The mean of all rows that stand for a token."""
        total: Any = 0.0
        for start in range(0, self.size, ROWS):
            stop = min(start + ROWS, self.size)
            rows = self._known(model, start, stop, read)[self._real[start:stop]]
            total = total + rows.sum(axis=0, dtype=np.float64)
        return total / self._real.sum()

    def _settings(self) -> dict[str, Any]:
        """What changes in config.json."""
        file = self._tokenizer.source.folder / "config.json"
        own = read_json(file) if self._foreign and file.is_file() else {}
        special = {name: value for name, value in own.items() if name.endswith("_token_id")}
        return {**special, "vocab_size": self.size}

    def _config(self) -> dict[str, Any]:
        """tokenizer_config.json in the layout that transformers 4 and 5 both read."""
        config = {name: value for name, value in self._tokenizer.source.config.items() if name != "auto_map"}
        if config.get("tokenizer_class") in (None, "TokenizersBackend"):
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
        if "added_tokens_decoder" in config:
            config["added_tokens_decoder"] = dict(map(_listed, self._tokenizer.data["added_tokens"]))
        return config

    def _lines(self) -> Iterator[str]:
        source, ids = self._tokenizer.source, self._tokenizer.ids
        new = len(ids) - len(source.ids)
        yield f"tokenizer: that of {source.model}" + (f" and {new} tokens more" if new else "") + f", {len(ids)} in all"
        for model, tokens in enumerate(self._models):
            moved = sum(1 for text, number in tokens.ids.items() if ids.get(text, number) != number)
            lost, lacking = len(tokens.ids.keys() - ids.keys()), int((self._own[model][self._real] < 0).sum())
            if moved or lost or lacking:
                yield f"{tokens.model}: {moved} tokens moved, {lost} left out, {lacking} filled in"
        if empty := [text for text, number in ids.items() if self._fills.get(number) == ()]:
            shown = ", ".join(map(repr, empty[:3]))
            yield f"{len(empty)} tokens start as zeros: {shown}" + (" …" if len(empty) > 3 else "")


def _rows(folder: Path) -> int | None:
    """The rows of the embedding beside a tokenizer, by its config.json."""
    file = folder / "config.json"
    said = read_json(file).get("vocab_size") if file.is_file() else None
    return said if isinstance(said, int) else None


def _listed(token: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """An added token as tokenizer_config.json lists it."""
    return str(token["id"]), {name: value for name, value in token.items() if name != "id"}
