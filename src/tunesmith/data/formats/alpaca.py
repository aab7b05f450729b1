"""Instruction data: a task, perhaps with material, and its answer.

    {"instruction": "Translate into French.", "input": "Good day.", "output": "Bonjour."}

The user's turn is the instruction and, on the next line, the input. `history` is a list of [user, assistant] pairs that
came before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tunesmith.core.records import Chat, Message, Place, Record
from tunesmith.data.formats import Format, Row, RowFault
from tunesmith.data.parts import as_list, as_string, filled, given, optional, rating
from tunesmith.data.turns import read_chat, read_tools


class Alpaca(Format):
    """Instruction, input and output as columns, in the manner of Stanford Alpaca."""

    yields: ClassVar[type[Record]] = Chat
    columns: ClassVar[Mapping[str, str]] = {
        "instruction": "the task",
        "input": "material for the task, may be absent",
        "output": "the answer",
        "system": "the system turn, may be absent",
        "history": "earlier [user, assistant] pairs, may be absent",
        "tools": "functions that may be called, may be absent",
    }

    def matches(self, row: Row) -> str | None:
        """Columns instruction and output, and neither a preference nor a rating."""
        if not {"instruction", "output"} <= row.keys():
            return None
        if given(row, "chosen") or given(row, "rejected") or rating(row):
            return None
        return "columns `instruction` and `output`"

    def read(self, row: Row, place: Place) -> Chat:
        """The chat of a row: history, then the task, then the answer."""
        answer = Message("assistant", filled(row, "output", "empty-output"))
        messages = (*task(row, "instruction"), answer)
        return Chat(read_chat(messages, optional(row, "system")), read_tools(row), place=place)


def task(row: Row, question: str) -> tuple[Message, ...]:
    """The turns before the answer: history and the user's turn; `question` is the column of the instruction.

    Raises:
        RowFault: nothing is asked, or a part is of a wrong type.
    """
    parts = [optional(row, question), optional(row, "input")]
    asked = "\n".join(part for part in parts if part)
    if not asked.strip():
        raise RowFault("empty-input", f"`{question}` and `input` are both empty")
    return (*_history(row), Message("user", asked))


def _history(row: Row) -> tuple[Message, ...]:
    messages: list[Message] = []
    for number, item in enumerate(as_list(row["history"], "history") if given(row, "history") else []):
        where = f"history[{number}]"
        pair = as_list(item, where)
        if len(pair) != 2:
            raise RowFault("wrong-type", f"`{where}` has {len(pair)} items; it must be a pair of user and assistant")
        messages += [Message("user", as_string(pair[0], where)), Message("assistant", as_string(pair[1], where))]
    return tuple(messages)
