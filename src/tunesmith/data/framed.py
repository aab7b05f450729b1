"""Texts that are judged, not written: each in the frame that the tokenizer itself puts around a text.

    Labelled   text                       values: the label's number; or a 0 or 1 for each label; or the label itself
    Tagged     words                      marks: the last token of each word; values: each tag's number
    Related    query ──┬── near           values: the grades
                       └── far
               query · near · far         with `apart`, texts of their own; values: 0 for the query, then the grades

Nothing is learned of their tokens. A row that is too long is cut inside of the frame, as transformers cuts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tunesmith.core.records import Labelled, Record, Related, Tagged
from tunesmith.core.rows import Piece, TokenRow
from tunesmith.data.masks import NoMask
from tunesmith.data.tokenizer import Codec

if TYPE_CHECKING:
    from tunesmith.data.encode import Rules

Grades = Literal["any", "near", "near and far", "unlike", "ranked", "shares", "cosines"]
"""What an objective over Related records needs of their grades."""
_NEEDED: Mapping[Grades, tuple[Callable[[set[float]], bool], str]] = {
    "any": (lambda grades: True, "any grades"),
    "near": (lambda grades: grades <= {0, 1} and 1 in grades, "1 for near texts, one at least, and 0 for far ones"),
    "near and far": (lambda grades: grades == {0, 1}, "1 for near texts and 0 for far ones, one of each at least"),
    "unlike": (lambda grades: len(grades) > 1, "two texts of different grades at least"),
    "ranked": (
        lambda grades: len(grades) > 1 and min(grades) >= 0,
        "two texts of different grades at least, and none below 0",
    ),
    "shares": (lambda grades: all(0 <= grade <= 1 for grade in grades), "grades from 0 to 1"),
    "cosines": (lambda grades: all(-1 <= grade <= 1 for grade in grades), "grades from -1 to 1"),
}


def framed(record: Record, codec: Codec, rules: Rules) -> TokenRow:
    """The token row of a record of one of the kinds in `FRAMED`.

    Raises:
        NoMask: an empty text, or labels that the rules do not know.
    """
    return FRAMED[type(record)](record, codec, rules)


def cut_framed(row: TokenRow, size: int, codec: Codec, what: str) -> TokenRow:
    """The row with every path cut to `size` tokens, its frame kept; marks that are cut off go with their values.

    Raises:
        NoMask: a text has no room at all; `what` says how long the row is.
    """
    pair = row.branches and len(row.trunk)
    before, end = (0, len(codec.pair_frame[2])) if pair else (len(codec.parts.prefix), len(codec.parts.suffix))
    room = size - len(row.trunk) if row.branches else size
    if room <= before + end:
        raise NoMask("too long", f"{what}; no room is left for the text")
    if row.branches:
        branches = tuple(_cut(branch, room, end) for branch in row.branches)
        return TokenRow(row.trunk, branches, values=row.values)
    marks = tuple(takewhile(lambda mark: mark < room - end, row.marks))
    if row.marks and not marks:
        raise NoMask("too long", f"{what}; no word is whole in what is left")
    return TokenRow(_cut(row.trunk, room, end), values=row.values[: len(marks)] if marks else row.values, marks=marks)


def _labelled(record: Labelled, codec: Codec, rules: Rules) -> TokenRow:
    return TokenRow(_text(codec, record.text), values=_values(record.labels, rules))


def _values(labels: Sequence[str], rules: Rules) -> tuple[float, ...]:
    """What the labels of a text are as numbers; nothing where the rules know no labels."""
    if not rules.number and not rules.labels:
        return ()
    if rules.several:
        wanted = set(_numbers(labels, rules.labels))
        return tuple(float(number in wanted) for number in range(len(rules.labels)))
    if len(labels) != 1:
        reason = "several labels" if labels else "missing label"
        raise NoMask(reason, f"the text has {len(labels)} labels, and one is learned")
    return (_number(labels[0]),) if rules.number else _numbers(labels, rules.labels)


def _number(label: str) -> float:
    try:
        number = float(label)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise NoMask("label is no number", f"the label is {label!r}, and a number is learned")
    return number


def _numbers(labels: Sequence[str], known: Sequence[str]) -> tuple[float, ...]:
    """The place of each label among those that are known."""
    places = {label: float(place) for place, label in enumerate(known)}
    if unknown := [label for label in labels if label not in places]:
        shown = ", ".join(known[:20]) + (" …" if len(known) > 20 else "")
        raise NoMask("unknown label", f"the label {unknown[0]!r} is none of those learned: {shown}")
    return tuple(places[label] for label in labels)


def _tagged(record: Tagged, codec: Codec, rules: Rules) -> TokenRow:
    ids, ends = codec.encode_words(record.words)
    if not ends:
        raise NoMask("empty", "there is no word")
    values = _numbers(record.tags, rules.labels) if rules.labels else ()
    return TokenRow(_piece(ids), values=values, marks=tuple(ends))


def _related(record: Related, codec: Codec, rules: Rules) -> TokenRow:
    fit, needed = _NEEDED[rules.grades]
    if not fit(set(record.grades)):
        shown = ", ".join(f"{grade:g}" for grade in record.grades[:8]) + (" …" if len(record.grades) > 8 else "")
        raise NoMask("unfit grades", f"the grades are {shown}, and what is learned needs {needed}")
    if rules.apart:
        texts = tuple(_text(codec, text) for text in (record.query, *record.others))
        return TokenRow(_piece(()), texts, values=(0.0, *record.grades))
    before, between, after = codec.pair_frame
    trunk = _piece([*before, *_ids(codec, record.query), *between])
    branches = tuple(_piece([*_ids(codec, text), *after]) for text in record.others)
    return TokenRow(trunk, branches, values=record.grades)


FRAMED: Mapping[type[Record], Callable[[Any, Codec, Rules], TokenRow]] = {
    Labelled: _labelled,
    Tagged: _tagged,
    Related: _related,
}
"""The kinds of record that are judged, and how each becomes a row."""


def _text(codec: Codec, text: str) -> Piece:
    return _piece([*codec.parts.prefix, *_ids(codec, text), *codec.parts.suffix])


def _ids(codec: Codec, text: str) -> list[int]:
    if not (ids := codec.encode_text(text)):
        raise NoMask("empty", "a text is empty")
    return ids


def _piece(tokens: Any) -> Piece:
    found = np.array(tokens, np.int32)
    return Piece(found, np.zeros(len(found), np.float32))


def _cut(piece: Piece, size: int, end: int) -> Piece:
    """A text cut to a size, the tokens that the tokenizer ends it with kept."""
    if len(piece) <= size:
        return piece
    return _piece([*piece.tokens[: size - end], *piece.tokens[len(piece) - end :]])
