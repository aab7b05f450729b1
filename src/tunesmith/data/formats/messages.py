"""Chats in the manner of OpenAI, with tools, reasoning, and a say over what is learned.

    {"messages": [{"role": "user", "content": "Hi"},
                  {"role": "assistant", "content": "Hello!", "train": true, "weight": 1.0}],
     "tools": [{"type": "function", "function": {"name": "search", "parameters": {}}}]}

`content` is a string or a list of typed parts (`text`, `reasoning`, `tool_call`). `train` and `weight` of a turn go
before the run's own choice of what is learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tunesmith.core.records import Chat, Place, Record
from tunesmith.data.formats import Row, RowFault
from tunesmith.data.parts import KEYS, first_given, given, optional, rating
from tunesmith.data.turns import ChatFormat, read_chat, read_tools


class Messages(ChatFormat):
    """Turns under `messages`, each with `role` and `content`."""

    yields: ClassVar[type[Record]] = Chat
    columns: ClassVar[Mapping[str, str]] = {
        "messages": "the turns",
        "system": "the system turn, may be absent",
        "tools": "functions that may be called, may be absent",
    }

    def matches(self, row: Row) -> str | None:
        """A list of turns under messages, and neither a preference nor a rating nor a prompt with a key."""
        if not self.has_turns(row.get("messages")) or given(row, "chosen") or rating(row):
            return None
        if self.is_open(row["messages"]) and first_given(row, KEYS):
            return None
        return "turns under `messages`"

    def read(self, row: Row, place: Place) -> Chat:
        """The chat of a row."""
        if "messages" not in row:
            raise RowFault("missing-part", "`messages` is missing")
        messages = self.messages(row["messages"], "messages")
        return Chat(read_chat(messages, optional(row, "system")), read_tools(row), place=place)
