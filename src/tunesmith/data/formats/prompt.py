r"""Prompts to be answered, each with the key that an answer is checked against, where there is one.

    {"question": "How many legs have two spiders?", "answer": "Eight each, so 2 * 8 = 16.\n#### 16"}
    {"messages": [{"role": "user", "content": "Name a prime."}, {"role": "assistant", "content": "7"},
                  {"role": "user", "content": "Another, below 4?"}], "solution": "3"}
    {"instruction": "Add.", "input": "2 2", "key": 4}
    {"prompt": "Write a poem about tides."}

`prompt` and `question` may be turns too. A prompt without a key is for rewards that need none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tunesmith.core.records import Message, Place, Prompt, Record
from tunesmith.data.formats import Row, RowFault
from tunesmith.data.formats.alpaca import task
from tunesmith.data.parts import ANSWERS, CHATS, KEYS, QUESTIONS, first_given, given, optional, written
from tunesmith.data.turns import ChatFormat, check_answers, check_order, read_tools, with_system

ASKED = (*QUESTIONS, "question", "problem")
"""Columns that may hold what is asked, in the order they are looked for."""
OTHERS = ("text", "label", "kto_tag", "chosen", "rejected", *ANSWERS)
"""Columns that say that a row is for something else."""


class OpenPrompt(ChatFormat):
    """What is asked, as a column or as turns that end with the user's, with the key of its answer."""

    yields: ClassVar[type[Record]] = Prompt
    columns: ClassVar[Mapping[str, str]] = {
        "messages": "the turns, the user's last",
        "conversations": "the same, another name",
        "prompt": "the task, as a string or as turns; or `instruction`, `question`, `problem`",
        "instruction": "the task",
        "question": "the task",
        "problem": "the task",
        "input": "material for the task, may be absent",
        "answer": "the key; or `solution`, `ground_truth`, `key`; may be absent",
        "solution": "the key",
        "ground_truth": "the key",
        "key": "the key",
        "system": "the system turn, may be absent",
        "history": "earlier [user, assistant] pairs, may be absent",
        "tools": "functions that may be called, may be absent",
    }

    def matches(self, row: Row) -> str | None:
        """Something asked and a key, or a prompt and no other text."""
        asked, key = first_given(row, (*CHATS, *ASKED)), first_given(row, KEYS)
        if asked is None or first_given(row, OTHERS) or (asked in CHATS and not self.is_open(row[asked])):
            return None
        if key:
            return f"`{asked}` with the key `{key}`"
        strings = [name for name, value in row.items() if isinstance(value, str)]
        alone = strings == ["prompt"] or (self.is_open(row.get("prompt")) and not strings)
        return "a column `prompt` and no answer" if asked == "prompt" and alone else None

    def read(self, row: Row, place: Place) -> Prompt:
        """What is asked, with its key."""
        messages = with_system(self._asked(row), optional(row, "system"))
        check_order(messages)
        check_answers(messages)
        if messages[-1].role not in ("user", "tool"):
            raise RowFault("role-order", f"the last turn is the {messages[-1].role}'s; a prompt ends with the user's")
        key = first_given(row, KEYS)
        return Prompt(messages, written(row[key], key) if key else "", read_tools(row), place=place)

    def _asked(self, row: Row) -> tuple[Message, ...]:
        asked = first_given(row, (*CHATS, *ASKED)) or "prompt"
        if asked in CHATS or (given(row, asked) and not isinstance(row[asked], str)):
            return self.messages(row.get(asked), asked)
        return task(row, asked)
