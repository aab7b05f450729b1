"""Where each row of a merged vocabulary comes from, by the rules of mergekit's recipes.

own row       the token's row in that model, wherever it stood
another's     where the model lacks the token, or is forced: the row of the one model that has it, of the base, or
              the mean of all that have it; a row or zeros that the recipe names; zeros if nobody has it
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.problem import Problem, nearest
from tunesmith.merge.names import read_name
from tunesmith.merge.tokens import ModelToken, TokenizerSpec, TokenSpec, Zero
from tunesmith.merge.tokens.read import Tokens
from tunesmith.merge.tokens.union import Grown, grow
from tunesmith.models.source import read_json

Row = tuple[int, int]
"""(number of the model, id of its own token)."""


@dataclass(frozen=True)
class Sources:
    """The models' tokens, and what a recipe says about the merged ones. base: the number of the base model."""

    spec: TokenizerSpec
    models: Sequence[Tokens]
    base: int

    @cached_property
    def grown(self) -> Grown:
        """The merged tokenizer.

        Raises:
            Problem: there is no such model, or its tokenizer cannot take the tokens.
        """
        source = self.models[self.base]
        if self.spec.source not in ("union", "base"):
            source = self.models[self._number(self.spec.source, "tokenizer.source", ("union", "base"))]
        others = [tokens for tokens in self.models if tokens is not source] if self.spec.source == "union" else []
        return grow(source, others, self.spec.tokens)

    @property
    def foreign(self) -> bool:
        """Whether the tokenizer is another model's than the base's."""
        return self.grown.source is not self.models[self.base]

    @property
    def size(self) -> int:
        """Rows of the merged embeddings, padding included."""
        step = self.spec.pad_to_multiple_of or 1
        return -(-(1 + max(self.grown.ids.values())) // step) * step

    def own(self) -> NDArray[np.intp]:
        """The id of each merged token in each model, -1 where it has none or takes another's [models, size]."""
        own = np.full((len(self.models), self.size), -1, np.intp)
        for row, tokens in zip(own, self.models, strict=True):
            common = [(number, tokens.ids[text]) for text, number in self.grown.ids.items() if text in tokens.ids]
            row[[number for number, _ in common]] = [number for _, number in common]
        own[:, [self.grown.ids[text] for text, about in self.spec.tokens.items() if about.force]] = -1
        return own

    def fills(self, own: NDArray[np.intp]) -> Iterator[tuple[int, tuple[Row, ...]]]:
        """The rows whose mean is taken where a model has none of its own, by the id of the token; none for zeros.

        Raises:
            Problem: a model or token that the recipe names does not exist, or the name has no effect.
        """
        full = np.all(own >= 0, axis=0)
        for text, about in self.spec.tokens.items():
            _check(text, about, full=bool(full[self.grown.ids[text]]))
        for text, number in self.grown.ids.items():
            if not full[number]:
                yield number, tuple(self._rows(text, self.spec.tokens.get(text, TokenSpec())))

    def settings(self) -> dict[str, Any]:
        """What changes in config.json: the rows, and with another model's tokenizer its special tokens' ids."""
        file = self.grown.source.folder / "config.json"
        said = read_json(file) if self.foreign and file.is_file() else {}
        return {**{name: value for name, value in said.items() if name.endswith("_token_id")}, "vocab_size": self.size}

    def lines(self, own: NDArray[np.intp], fills: Mapping[int, tuple[Row, ...]]) -> Iterator[str]:
        """What was done, in words."""
        source, ids = self.grown.source, self.grown.ids
        new = len(ids) - len(source.ids)
        yield f"tokenizer: that of {source.model}" + (f" and {new} tokens more" if new else "") + f", {len(ids)} in all"
        for tokens, row in zip(self.models, own, strict=True):
            moved = sum(1 for text, number in tokens.ids.items() if ids.get(text, number) != number)
            lost, lacking = len(tokens.ids.keys() - ids.keys()), int((row[list(ids.values())] < 0).sum())
            if moved or lost or lacking:
                yield f"{tokens.model}: {moved} tokens moved, {lost} left out, {lacking} filled in"
        if empty := [text for text, number in ids.items() if fills.get(number) == ()]:
            shown = ", ".join(map(repr, empty[:3]))
            yield f"{len(empty)} tokens start as zeros: {shown}" + (" …" if len(empty) > 3 else "")

    def _rows(self, text: str, about: TokenSpec) -> Iterator[Row]:
        place = f"tokenizer.tokens.{text}.source"
        if isinstance(about.source, Zero):
            return
        if isinstance(about.source, ModelToken):
            yield self._row(about.source, f"{place}.model", place)
        elif about.source is not None:
            yield self._row(ModelToken(kind="model_token", model=about.source, token=text), place, place)
        else:
            have = [(model, tokens.ids[text]) for model, tokens in enumerate(self.models) if text in tokens.ids]
            yield from [row for row in have if row[0] == self.base] or have

    def _row(self, wanted: ModelToken, named: str, place: str) -> Row:
        """One row of one model; named: where the recipe names the model."""
        model = self._number(wanted.model, named)
        tokens = self.models[model]
        if (wanted.token is None) == (wanted.token_id is None):
            raise Problem(place, "needs one of token and token_id", "Name the token once")
        if wanted.token_id is None:
            if wanted.token not in tokens.ids:
                hint = nearest(str(wanted.token), list(tokens.added) or list(tokens.ids)[:20])
                raise Problem(place, f"{tokens.model} has no token {wanted.token!r}", hint)
            return model, tokens.ids[wanted.token]
        if tokens.rows is not None and wanted.token_id >= tokens.rows:
            raise Problem(f"{place}.token_id", f"{tokens.model} has {tokens.rows} rows, and this is {wanted.token_id}")
        return model, wanted.token_id

    def _number(self, name: str, place: str, also: Sequence[str] = ()) -> int:
        """The number of a model that the recipe names."""
        known = [tokens.model for tokens in self.models]
        text = str(read_name(name, place))
        if text not in known:
            raise Problem(place, f"{name!r} is no model of this recipe", nearest(name, [*known, *also]))
        return known.index(text)


def _check(text: str, about: TokenSpec, *, full: bool) -> None:
    """Raises:
    Problem: what the recipe says of a token has no effect.
    """
    if about.force and about.source is None:
        what = "force has no effect without a source"
        raise Problem(f"tokenizer.tokens.{text}", what, "Say which embedding, or take force out")
    if about.source is not None and full:
        what = "has no effect: every model has this token"
        raise Problem(f"tokenizer.tokens.{text}.source", what, "Add force: true, or take it out")
