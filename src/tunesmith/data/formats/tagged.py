"""Words with tags, as for named entities or parts of speech.

{"tokens": ["Ada", "was", "born", "in", "London"], "tags": ["B-PER", "O", "O", "O", "B-LOC"]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from tunesmith.core.records import Place, Record, Tagged
from tunesmith.data.formats import Format, Row, RowFault
from tunesmith.data.parts import ANSWERS, CHATS, QUESTIONS, as_list, first_given, written

WORDS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "labels", "pos_tags")
OTHERS = ("text", *CHATS, *ANSWERS, *QUESTIONS)
"""Columns that say that a row is for something else."""


class TaggedWords(Format):
    """A list of words and a list of as many tags, as CoNLL files hold them too."""

    yields: ClassVar[type[Record]] = Tagged
    columns: ClassVar[Mapping[str, str]] = {
        "tokens": "the words; or `words`",
        "words": "the words",
        "tags": "a tag for each word, a string or a number; or `ner_tags`, `labels`, `pos_tags`",
        "ner_tags": "the tags",
        "labels": "the tags",
        "pos_tags": "the tags",
    }

    def matches(self, row: Row) -> str | None:
        """Two lists under names of words and of tags."""
        words, tags = first_given(row, WORDS), first_given(row, TAGS)
        if words is None or tags is None or first_given(row, OTHERS):
            return None
        lists = all(isinstance(row[part], (list, tuple)) for part in (words, tags))
        return f"lists `{words}` and `{tags}`" if lists else None

    def read(self, row: Row, place: Place) -> Tagged:
        """The words of a row and their tags."""
        words = _items(row, first_given(row, WORDS) or "tokens", "empty-text")
        tags = _items(row, first_given(row, TAGS) or "tags", "missing label")
        if len(words) != len(tags):
            raise RowFault("tag-count", f"has {len(words)} words and {len(tags)} tags")
        if not words:
            raise RowFault("empty-text", "there is no word")
        return Tagged(words, tags, place=place)


def _items(row: Row, part: str, empty: str) -> tuple[str, ...]:
    if part not in row:
        raise RowFault("missing-part" if empty == "empty-text" else empty, f"`{part}` is missing")
    items: list[Any] = as_list(row[part], part)
    return tuple(written(item, f"{part}[{at}]", empty) for at, item in enumerate(items))
