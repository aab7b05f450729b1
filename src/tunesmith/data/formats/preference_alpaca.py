"""Preferences as strings: a task with a better and a worse answer.

    {"instruction": "Explain tides.", "input": "", "chosen": "The moon …", "rejected": "Nobody knows."}

`prompt` may stand for `instruction`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tunesmith.core.records import Message, Place, Preference, Record
from tunesmith.data.formats import Format, Row, RowFault
from tunesmith.data.formats.alpaca import task
from tunesmith.data.parts import QUESTIONS, filled, first_given, optional
from tunesmith.data.turns import check_order, read_tools, with_system


class PreferenceAlpaca(Format):
    """A task as columns, with `chosen` and `rejected` as strings."""

    yields: ClassVar[type[Record]] = Preference
    columns: ClassVar[Mapping[str, str]] = {
        "instruction": "the task",
        "input": "material for the task, may be absent",
        "chosen": "the better answer",
        "rejected": "the worse answer",
        "system": "the system turn, may be absent",
        "history": "earlier [user, assistant] pairs, may be absent",
        "tools": "functions that may be called, may be absent",
    }

    def matches(self, row: Row) -> str | None:
        """A question and two answers as strings."""
        question = first_given(row, QUESTIONS)
        if question is None or not all(isinstance(row.get(key), str) for key in (question, "chosen", "rejected")):
            return None
        return f"strings `{question}`, `chosen` and `rejected`"

    def read(self, row: Row, place: Place) -> Preference:
        """The task with its two answers."""
        prompt = with_system(task(row, first_given(row, QUESTIONS) or "instruction"), optional(row, "system"))
        chosen, rejected = (Message("assistant", filled(row, part, "empty-output")) for part in ("chosen", "rejected"))
        check_order((*prompt, chosen))
        return preference(prompt, (chosen,), (rejected,), row, place)


def preference(
    prompt: tuple[Message, ...], chosen: tuple[Message, ...], rejected: tuple[Message, ...], row: Row, place: Place
) -> Preference:
    """A preference between answers that differ.

    Raises:
        RowFault: both answers are the same, so there is nothing to prefer.
    """
    if chosen == rejected:
        raise RowFault("equal-answers", "`chosen` and `rejected` are the same, so there is nothing to prefer")
    return Preference(prompt, chosen, rejected, read_tools(row), place=place)
