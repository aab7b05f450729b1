"""Plain text to continue: text files, and rows with a column of text.

{"text": "Once upon a time …"}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tunesmith.core.records import Place, Record, Text
from tunesmith.data.formats import Format, Row
from tunesmith.data.parts import ANSWERS, CHATS, filled, first_given


class PlainText(Format):
    """A column `text`, or a text file as one row."""

    yields: ClassVar[type[Record]] = Text
    columns: ClassVar[Mapping[str, str]] = {"text": "the text"}

    def matches(self, row: Row) -> str | None:
        """A string under text, and nothing that another format learns from."""
        others = (*CHATS, *ANSWERS, "instruction", "chosen", "label")
        if not isinstance(row.get("text"), str) or first_given(row, others):
            return None
        if isinstance(row.get("labels"), (list, tuple)):
            return None
        return "a column `text`"

    def read(self, row: Row, place: Place) -> Text:
        """The text of a row."""
        return Text(filled(row, "text", "empty-text"), place=place)
