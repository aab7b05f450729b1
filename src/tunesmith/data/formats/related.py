"""Texts that belong together or do not, for embeddings and rerankers: pairs, triplets and scored pairs.

    {"anchor": "How tall is Everest?", "positive": "It rises 8,849 m.", "negative": "Tides follow the moon."}
    {"query": "tides", "pos": ["The moon pulls the sea."], "neg": ["Everest is high.", "Bread is baked."]}
    {"sentence1": "A child plays.", "sentence2": "A kid is playing.", "score": 4.7}

A near text has grade 1, a far one 0; a scored pair has its score. Texts may stand in lists.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from tunesmith.core.records import Place, Record, Related
from tunesmith.data.formats import Format, Row, RowFault
from tunesmith.data.parts import ANSWERS, CHATS, QUESTIONS, as_list, filled, first_given, given, kind_of

ASKING = ("anchor", "query")
NEAR = ("positive", "positives", "pos")
FAR = ("negative", "negatives", "neg")
SCORES = ("score", "label")
OTHERS = ("text", "chosen", "rejected", *CHATS, *ANSWERS, *QUESTIONS)
"""Columns that say that a row is for something else."""


class RelatedTexts(Format):
    """A text with near and far ones (`anchor`, `positive`, `negative`), or two sentences with a score."""

    yields: ClassVar[type[Record]] = Related
    columns: ClassVar[Mapping[str, str]] = {
        "anchor": "the text that others are compared with; or `query`",
        "query": "the same, another name",
        "positive": "a near text, or a list of them; or `positives`, `pos`",
        "positives": "near texts",
        "pos": "near texts",
        "negative": "a far text, or a list of them, may be absent; or `negatives`, `neg`, `negative_1`, `negative_2` …",
        "negatives": "far texts",
        "neg": "far texts",
        "sentence1": "the first text of a scored pair",
        "sentence2": "its second text",
        "score": "how near they are, a number; or `label`",
        "label": "how near they are",
    }

    def matches(self, row: Row) -> str | None:
        """A text and a near one, or two sentences and a number."""
        if first_given(row, OTHERS):
            return None
        asking, near = first_given(row, ASKING), first_given(row, NEAR)
        if asking and near:
            return f"columns `{asking}` and `{near}`"
        scored = first_given(row, SCORES)
        if not (given(row, "sentence1") and given(row, "sentence2") and scored and _number(row[scored]) is not None):
            return None
        return f"columns `sentence1`, `sentence2` and `{scored}`"

    def read(self, row: Row, place: Place) -> Related:
        """The text, the others, and how near each is."""
        if first_given(row, ("sentence1", "sentence2")):
            others = (filled(row, "sentence2", "empty-text"),)
            return Related(filled(row, "sentence1", "empty-text"), others, (_score(row),), place=place)
        near = _texts(row, first_given(row, NEAR) or "positive")
        if not near:
            raise RowFault("empty-text", "there is no near text")
        far = [text for part in _far(row) for text in _texts(row, part)]
        query = filled(row, first_given(row, ASKING) or "anchor", "empty-text")
        grades = (1.0,) * len(near) + (0.0,) * len(far)
        return Related(query, (*near, *far), grades, place=place)


def _far(row: Row) -> list[str]:
    """The columns of far texts that a row holds, numbered ones in order."""
    numbered = [name for name in row if re.fullmatch(r"negative_\d{1,4}", name)]
    return [
        name for name in (*FAR, *sorted(numbered, key=lambda name: int(name.rpartition("_")[2]))) if given(row, name)
    ]


def _texts(row: Row, part: str) -> list[str]:
    """The texts of a part: one, or those of a list."""
    if isinstance(row.get(part), (list, tuple)):
        items: list[Any] = as_list(row[part], part)
        return [filled({f"{part}[{at}]": item}, f"{part}[{at}]", "empty-text") for at, item in enumerate(items)]
    return [filled(row, part, "empty-text")]


def _score(row: Row) -> float:
    part = first_given(row, SCORES)
    if part is None:
        raise RowFault("missing label", "`score` is missing")
    number = _number(row[part])
    if number is None:
        raise RowFault("wrong-type", f"`{part}` is {kind_of(row[part])}; it must be a number")
    return number


def _number(value: Any) -> float | None:
    """A finite number, perhaps written as a string, as tables hold it; else None."""
    if not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
