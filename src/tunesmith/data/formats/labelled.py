"""Texts with labels: for a classifier, or taught as a chat whose answer is the label.

{"text": "A moving film.", "label": "good"}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tunesmith.core.records import Labelled, Place, Record
from tunesmith.data.formats import Format, Row, RowFault
from tunesmith.data.parts import ANSWERS, CHATS, QUESTIONS, filled, first_given, given, kind_of

TEXTS = ("text", "sentence", "review", "content")
"""Columns that may hold the text, in the order they are looked for."""


class LabelledText(Format):
    """A text (`text`, `sentence`, `review`, `content`) and its `label`: a string, a whole number, true or false."""

    yields: ClassVar[type[Record]] = Labelled
    columns: ClassVar[Mapping[str, str]] = {"text": "the text", "label": "its label"}

    def matches(self, row: Row) -> str | None:
        """A text column and a label, and nothing that is asked or answered."""
        text = first_given(row, TEXTS)
        if text is None or not given(row, "label") or first_given(row, (*CHATS, *ANSWERS, *QUESTIONS)):
            return None
        return f"columns `{text}` and `label`"

    def read(self, row: Row, place: Place) -> Labelled:
        """The text and label of a row."""
        text = filled(row, first_given(row, TEXTS) or "text", "empty-text")
        return Labelled(text, (_label(row),), place=place)


def _label(row: Row) -> str:
    if "label" not in row:
        raise RowFault("missing-part", "`label` is missing")
    value = row["label"]
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if not isinstance(value, (str, int)):
        raise RowFault("wrong-type", f"`label` is {kind_of(value)}; it must be a string, a whole number, true or false")
    if not str(value).strip():
        raise RowFault("empty-output", "`label` is empty")
    return str(value).strip()
