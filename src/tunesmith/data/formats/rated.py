"""Rated answers, as KTO learns from: one answer, found good or bad.

    {"instruction": "Explain tides.", "output": "The moon …", "kto_tag": true}
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}], "label": true}
    {"prompt": "Explain tides.", "completion": "Nobody knows.", "label": false}

In the form with turns, what follows the last turn of the user is the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tunesmith.core.records import Message, Place, Rated, Record
from tunesmith.data.formats import Row, RowFault
from tunesmith.data.formats.alpaca import task
from tunesmith.data.parts import ANSWERS, CHATS, QUESTIONS, filled, first_given, given, kind_of, optional, rating, truth
from tunesmith.data.turns import ChatFormat, read_chat, read_tools


class RatedAnswer(ChatFormat):
    """A question and an answer, as columns or as turns, with `kto_tag` or `label` true or false."""

    yields: ClassVar[type[Record]] = Rated
    columns: ClassVar[Mapping[str, str]] = {
        "messages": "the turns, the answer last",
        "conversations": "the same, another name",
        "instruction": "the task, where there are no turns; or `prompt`",
        "prompt": "the task, as a string or as turns",
        "input": "material for the task, may be absent",
        "output": "the answer; or `completion`, `response`",
        "completion": "the answer, as a string or as turns",
        "response": "the answer",
        "kto_tag": "whether the answer is good; or `label`",
        "label": "whether the answer is good",
        "system": "the system turn, may be absent",
        "history": "earlier [user, assistant] pairs, may be absent",
        "tools": "functions that may be called, may be absent",
    }

    def matches(self, row: Row) -> str | None:
        """A rating that is true or false, and something that is rated."""
        column = rating(row)
        if column is None:
            return None
        chat = first_given(row, CHATS)
        if chat:
            return f"turns under `{chat}`, rated by `{column}`"
        question, answer = first_given(row, QUESTIONS), first_given(row, ANSWERS)
        return f"columns `{question}` and `{answer}`, rated by `{column}`" if question and answer else None

    def read(self, row: Row, place: Place) -> Rated:
        """The prompt, the answer and whether it is good."""
        messages = read_chat(self._messages(row), optional(row, "system"))
        cut = _answer_start(messages)
        return Rated(messages[:cut], messages[cut:], _good(row), read_tools(row), place=place)

    def _messages(self, row: Row) -> tuple[Message, ...]:
        chat = first_given(row, CHATS)
        if chat:
            return self.messages(row[chat], chat)
        question, answer = first_given(row, QUESTIONS) or "instruction", first_given(row, ANSWERS) or "output"
        before = self.messages(row[question], question) if self.has_turns(row.get(question)) else task(row, question)
        if self.has_turns(row.get(answer)):
            return before + self.messages(row[answer], answer)
        return (*before, Message("assistant", filled(row, answer, "empty-output")))


def _answer_start(messages: tuple[Message, ...]) -> int:
    """The answer is what follows the last user's turn, so that its tool calls belong to it."""
    return max((number for number, message in enumerate(messages) if message.role == "user"), default=-1) + 1


def _good(row: Row) -> bool:
    column = next((name for name in ("kto_tag", "label") if given(row, name)), None)
    if column is None:
        raise RowFault("missing-part", "`kto_tag` or `label` is missing")
    good = truth(row[column])
    if good is None:
        raise RowFault("wrong-type", f"`{column}` is {kind_of(row[column])}; it must be true or false")
    return good
