r"""Chats in the manner of ShareGPT, with functions.

    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}],
     "system": "Be brief.", "tools": "[{\"name\": \"search\", \"parameters\": {}}]"}

A turn from `function_call` becomes an assistant's turn with tool calls, one from `observation` a tool's turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tunesmith.core.records import Chat, Place, Record
from tunesmith.data.formats import Row, RowFault
from tunesmith.data.parts import KEYS, first_given, given, optional, rating
from tunesmith.data.turns import ChatFormat, read_chat, read_tools


class Sharegpt(ChatFormat):
    """Turns under `conversations`, each with `from` and `value`; the names can be set."""

    yields: ClassVar[type[Record]] = Chat
    columns: ClassVar[Mapping[str, str]] = {
        "conversations": "the turns",
        "system": "the system turn, may be absent",
        "tools": "functions that may be called, may be absent",
    }

    def matches(self, row: Row) -> str | None:
        """A list of turns under conversations, and neither a preference nor a rating nor a prompt with a key."""
        if not self.has_turns(row.get("conversations")) or given(row, "chosen") or rating(row):
            return None
        if self.is_open(row["conversations"]) and first_given(row, KEYS):
            return None
        return "turns under `conversations`"

    def read(self, row: Row, place: Place) -> Chat:
        """The chat of a row."""
        if "conversations" not in row:
            raise RowFault("missing-part", "`conversations` is missing")
        messages = self.messages(row["conversations"], "conversations")
        return Chat(read_chat(messages, optional(row, "system")), read_tools(row), place=place)
