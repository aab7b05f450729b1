"""A tokenizer.json that holds the tokens of several models, or one model's with some more.

    base's tokens keep their ids ─▶ pieces that others have ─▶ tokens that others added ─▶ tokens that the recipe names

New pieces go among the model's own pieces, with the merges that lead to them behind the base's: so what the base
tokenizes without them stays as it is, and text is never cut at a piece's bare spelling, as it would be at an added
token's. Added tokens keep the settings of the first model that has them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from tokenizers import Tokenizer

from tunesmith.core.problem import Problem
from tunesmith.merge.tokens.read import Tokens, pieces

PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
"""Settings of a token that only the recipe names."""
RARE = 10.0
"""How much less likely than a tokenizer's least likely piece one of another kind of tokenizer is (Unigram)."""


@dataclass(frozen=True)
class Grown:
    """A tokenizer of the merged model.

    source: the model that its files and settings come from; data: its tokenizer.json; ids: of all its tokens.
    """

    source: Tokens
    data: dict[str, Any]
    ids: dict[str, int]


def grow(source: Tokens, others: Sequence[Tokens], named: Iterable[str]) -> Grown:
    """The source's tokenizer with all tokens of the others, and those that are named.

    Raises:
        Problem: this kind of tokenizer cannot take them.
    """
    found: dict[str, Any] = _without_rowless(source)
    ids = dict(source.ids)
    added = _added(source, others, named, ids)
    known = {*ids, *added}
    ordinary = list(dict.fromkeys(text for other in others for text in other.ids if text not in known))
    wanted = dict.fromkeys([*ordinary, *(text for text in added if text not in ids)])
    after = 1 + max(ids.values())
    ids |= {text: after + number for number, text in enumerate(wanted)}
    if not added and not ordinary:
        return Grown(source, found, ids)
    if ordinary:
        found = {**found, "model": _with_pieces(source, others, ordinary, ids, found["model"])}
    entries: list[dict[str, Any]] = [*found["added_tokens"]]
    entries += [{**token, "id": ids[text]} for text, token in added.items()]
    found = {**found, "added_tokens": sorted(entries, key=lambda token: token["id"])}
    _check(source, found, ids)
    return Grown(source, found, ids)


def _added(
    source: Tokens, others: Sequence[Tokens], named: Iterable[str], ids: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """Added tokens that are new, with their settings; a piece of the source may become one and keeps its id."""
    found: dict[str, dict[str, Any]] = {}
    for other in others:
        new = other.added.keys() - source.added.keys() - found.keys()
        found |= {text: token for text, token in other.added.items() if text in new}
    ordinary = {text for other in others for text in other.ids}
    known = {*ids, *ordinary, *found}
    return found | {text: {"content": text, **PLAIN} for text in named if text not in known}


def _without_rowless(source: Tokens) -> dict[str, Any]:
    """The source's tokenizer.json without tokens that its embedding has no row for.

    Raises:
        Problem: it is of a kind from which none can be taken.
    """
    data = source.data
    lost = {text for text, _ in _all(data)} - source.ids.keys()
    if not lost:
        return data
    model: dict[str, Any] = data["model"]
    if not isinstance(model["vocab"], dict):
        raise Problem(
            source.model, f"its embedding has no rows for {len(lost)} tokens", "Take another tokenizer_source"
        )
    vocab = {text: number for text, number in cast("dict[str, int]", model["vocab"]).items() if text not in lost}
    model = {**model, "vocab": vocab}
    if "merges" in model:
        model["merges"] = [pair for pair in _pairs(model["merges"]) if not lost.intersection((*pair, "".join(pair)))]
    added = [token for token in data["added_tokens"] if token["content"] not in lost]
    return {**data, "model": model, "added_tokens": added}


def _all(data: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    yield from pieces(data)
    yield from ((token["content"], token["id"]) for token in data["added_tokens"])


def _with_pieces(
    source: Tokens, others: Sequence[Tokens], ordinary: Sequence[str], ids: Mapping[str, int], model: Mapping[str, Any]
) -> dict[str, Any]:
    """The model of a tokenizer.json with new pieces; added tokens become pieces too, so that all ids are said."""
    if not isinstance(model["vocab"], dict):
        return {**model, "vocab": _scored(source, others, ids, model["vocab"])}
    out = {**model, "vocab": dict(ids)}
    if "merges" in model:
        new = set(ordinary)
        pairs = list(_pairs(model["merges"]))
        known = set(pairs)
        for other in others:
            for pair in _pairs(other.data["model"].get("merges", ())):
                if "".join(pair) in new and pair not in known and ids.keys() >= set(pair):
                    known.add(pair)
                    pairs.append(pair)
        out["merges"] = pairs
    return out


def _pairs(merges: Iterable[str | Sequence[str]]) -> Iterator[tuple[str, str]]:
    """The merges of a tokenizer.json in the newer of its two spellings."""
    for merge in merges:
        first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
        yield first, second


def _scored(
    source: Tokens, others: Sequence[Tokens], ids: Mapping[str, int], vocab: Sequence[tuple[str, float]]
) -> list[tuple[str, float]]:
    """The pieces of a Unigram model with new ones behind them, each with its score where it comes from such a model."""
    scores: dict[str, float] = {}
    for tokens in (*others[::-1], source):
        own: Any = tokens.data["model"]["vocab"]
        scores |= {} if isinstance(own, dict) else {str(text): float(score) for text, score in own}
    rare = min(score for _, score in vocab) - RARE
    ordered = sorted(ids, key=lambda text: ids[text])
    return [(text, scores.get(text, rare)) for text in ordered]


def _check(source: Tokens, data: Mapping[str, Any], ids: Mapping[str, int]) -> None:
    """Raises:
    Problem: the tokenizer does not give the tokens the ids that they were planned to have.
    """
    try:
        found = Tokenizer.from_str(json.dumps(data, ensure_ascii=False)).get_vocab(with_added_tokens=True)
    except Exception as error:  # tokenizers raises bare Exception for whatever is wrong
        raise Problem(source.model, f"its tokenizer cannot take more tokens ({error})", "Use another source") from error
    wrong = [text for text, number in ids.items() if found.get(text) != number]
    if wrong or len(found) != len(ids):
        what = f"its tokenizer gives new tokens other ids than planned, such as {(wrong or ['one more'])[0]!r}"
        raise Problem(source.model, what, "Its ids have gaps; use another tokenizer source")
