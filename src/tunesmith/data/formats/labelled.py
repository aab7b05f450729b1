"""Texts with labels: for a classifier, or taught as a chat whose answer is the label.

    {"text": "A moving film.", "label": "good"}
    {"text": "Tides and the moon", "labels": ["sea", "sky"]}

A label may be a number, for a model that learns numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from tunesmith.core.records import Labelled, Place, Record
from tunesmith.data.formats import Format, Row, RowFault
from tunesmith.data.parts import ANSWERS, CHATS, QUESTIONS, as_list, filled, first_given, given, written

TEXTS = ("text", "sentence", "review", "content")
"""Columns that may hold the text, in the order they are looked for."""
LABELS = ("label", "labels")
"""Columns that may hold its labels; in `labels` they are a list."""


class LabelledText(Format):
    """A text (`text`, `sentence`, `review`, `content`) and its `label`, or a list of `labels`."""

    yields: ClassVar[type[Record]] = Labelled
    columns: ClassVar[Mapping[str, str]] = {
        "text": "the text",
        "label": "its label: a string, a number, true or false",
        "labels": "a list of labels, where any number of them may apply",
    }

    def matches(self, row: Row) -> str | None:
        """A text column and a label, and nothing that is asked or answered."""
        text = first_given(row, TEXTS)
        if text is None or first_given(row, (*CHATS, *ANSWERS, *QUESTIONS)):
            return None
        if given(row, "label"):
            return f"columns `{text}` and `label`"
        return f"columns `{text}` and `labels`" if isinstance(row.get("labels"), (list, tuple)) else None

    def read(self, row: Row, place: Place) -> Labelled:
        """The text and labels of a row."""
        text = filled(row, first_given(row, TEXTS) or "text", "empty-text")
        return Labelled(text, _labels(row), place=place)


def _labels(row: Row) -> tuple[str, ...]:
    column = first_given(row, LABELS)
    if column is None:
        raise RowFault("missing label", "`label` is missing")
    value = row[column]
    if column == "label":
        return (written(value, column, "missing label"),)
    items: list[Any] = as_list(value, column)
    labels = tuple(written(item, f"{column}[{at}]", "missing label") for at, item in enumerate(items))
    return tuple(dict.fromkeys(labels))
