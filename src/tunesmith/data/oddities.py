"""What a record says: its texts, a hash of its content, and what is odd about them though they can be used."""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from operator import attrgetter
from typing import Any, cast

from tunesmith.core.records import Message, Record
from tunesmith.data.files.encoding import is_sound
from tunesmith.data.formats import RowFault

PLACEHOLDERS = "rows with placeholders such as {{name}}"
_PLACEHOLDER = re.compile(r"\{\{\s*\w+\s*\}\}")
BEYOND_ASCII = {
    "rows with invisible characters (zero-width or text direction)": re.compile(
        "[\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]"
    ),
    "rows with characters lost in an earlier conversion (\ufffd)": re.compile("\ufffd"),
    "rows with text decoded wrongly earlier (such as â€™ for ’)": re.compile("â€|Ã[\x80-\xbf]|Â[\x80-\xbf]"),
}
"""What is counted and said, but kept: {what a person reads: the pattern}."""
MOST_HASHES = 2**25
"""How many different rows are remembered when looking for duplicates: 512 MiB of hashes at most."""


def record_texts(record: Record) -> list[str]:
    """Every text of a record, tool calls and tools as JSON."""
    found: list[str] = []
    for part in _parts(type(record)):
        _gather(getattr(record, part), found)
    return found


def content_hash(record: Record) -> bytes:
    """A hash [16 bytes] of what a record says, wherever it stands."""
    texts: list[str] = []
    content = [(part, _told(getattr(record, part), texts)) for part in _parts(type(record))]
    said = f"{type(record).__name__} {content}{''.join(texts)}"
    return hashlib.blake2b(said.encode("utf-8", "replace"), digest_size=16).digest()


def refuse_unwritable(record: Record) -> None:
    """Refuse text that no tokenizer takes as it is.

    Raises:
        RowFault: a NUL character or a lone surrogate.
    """
    texts = record_texts(record)
    whole = "\n".join(texts)
    if "\0" not in whole and is_sound(whole):
        return
    for text in texts:
        if "\0" in text:
            raise RowFault("nul-character", "holds a NUL character")
        if not is_sound(text):
            raise RowFault("lone-surrogate", "holds half of a surrogate pair, which is no character")


def oddities(record: Record) -> list[str]:
    """The names of what is odd about a record."""
    text = "\n".join(record_texts(record))
    found = [PLACEHOLDERS] if "{" in text and _PLACEHOLDER.search(text) else []
    if text.isascii():
        return found
    return found + [name for name, pattern in BEYOND_ASCII.items() if pattern.search(text)]


class Seen:
    """Remembers contents by 8-byte hashes in one flat table, so that a million rows cost 16 MiB."""

    def __init__(self) -> None:
        self.table = array("Q", bytes(8 * 1024))
        self.count = 0

    @property
    def full(self) -> bool:
        """Whether no further content is remembered, so that duplicates are a lower bound."""
        return self.count >= MOST_HASHES

    def add(self, content: bytes) -> bool:
        """Remember a content hash; True if it was seen before."""
        key = int.from_bytes(content[:8], "little") or 1
        slot = self._slot(key)
        if self.table[slot]:
            return True
        if not self.full:
            self.table[slot] = key
            self.count += 1
            if 2 * self.count > len(self.table):
                self._grow()
        return False

    def _slot(self, key: int) -> int:
        table, mask = self.table, len(self.table) - 1
        slot = key & mask
        while table[slot] and table[slot] != key:
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        keys = self.table
        self.table = array("Q", bytes(16 * len(keys)))
        for key in keys:
            if key:
                self.table[self._slot(key)] = key


@cache
def _parts(kind: type[Record]) -> tuple[str, ...]:
    """The parts of a kind of record, but for its place."""
    return tuple(part.name for part in fields(kind) if part.name != "place")


_BESIDE_CONTENT = attrgetter(*(part.name for part in fields(Message) if part.name != "content"))


def _told(value: Any, texts: list[str]) -> Any:
    """A part of a record; of turns the contents are put to the texts, and their lengths are told."""
    turns = cast("tuple[Any, ...]", value) if isinstance(value, tuple) else ()
    if not turns or not isinstance(turns[0], Message):
        return cast("Any", value)
    texts += [turn.content for turn in turns]
    return [(len(turn.content), _BESIDE_CONTENT(turn)) for turn in turns]


def _gather(value: Any, found: list[str]) -> None:
    """Put the texts of a value to those found."""
    if isinstance(value, str):
        found.append(value)
    elif isinstance(value, Message):
        found.append(value.content)
        found += [text for text in (value.reasoning, value.name) if text is not None]
        if value.tool_calls:
            _gather(value.tool_calls, found)
    elif isinstance(value, tuple):
        for item in cast("tuple[Any, ...]", value):
            _gather(item, found)
    elif isinstance(value, Mapping):
        found.append(json.dumps(value, ensure_ascii=False, default=str).replace("\\u0000", "\0"))
