"""Preferences as turns: a chat with a better and a worse ending.

    {"conversations": [{"from": "human", "value": "Hi"}],
     "chosen": {"from": "gpt", "value": "Hello!"}, "rejected": {"from": "gpt", "value": "What?"}}
    {"prompt": "Hi",
     "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}],
     "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "What?"}]}

`chosen` and `rejected` are a turn, a list of turns, or a string; both may repeat the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import Any, ClassVar

from tunesmith.core.records import Message, Place, Preference, Record
from tunesmith.data.formats import Row, RowFault
from tunesmith.data.formats.preference_alpaca import preference
from tunesmith.data.parts import CHATS, first_given, given, optional
from tunesmith.data.turns import ChatFormat, check_answers, check_order, with_system

Turns = tuple[Message, ...]


class PreferenceMessages(ChatFormat):
    """Turns before the answer (`conversations`, `messages` or `prompt`), with `chosen` and `rejected` as turns."""

    yields: ClassVar[type[Record]] = Preference
    columns: ClassVar[Mapping[str, str]] = {
        "conversations": "the turns before the answer; absent where both answers repeat them",
        "messages": "the same, another name",
        "prompt": "the same, or the user's turn as a string",
        "chosen": "the better ending",
        "rejected": "the worse ending",
        "system": "the system turn, may be absent",
        "tools": "functions that may be called, may be absent",
    }

    def matches(self, row: Row) -> str | None:
        """Two endings, at least one part of the row being turns."""
        if not (given(row, "chosen") and given(row, "rejected")):
            return None
        before = first_given(row, (*CHATS, "prompt"))
        if self.has_turns(row["chosen"]) and self.has_turns(row["rejected"]):
            return "turns under `chosen` and `rejected`"
        return (
            f"turns under `{before}`, with `chosen` and `rejected`" if before and self.has_turns(row[before]) else None
        )

    def read(self, row: Row, place: Place) -> Preference:
        """The prompt and its two endings."""
        chosen, rejected = self._turns(row, "chosen", "assistant"), self._turns(row, "rejected", "assistant")
        before = first_given(row, (*CHATS, "prompt"))
        prompt = self._turns(row, before, "user") if before else ()
        if chosen[0].role != "assistant":
            repeated = _common(chosen, rejected)
            _check_same(prompt, repeated)
            prompt, chosen, rejected = repeated, chosen[len(repeated) :], rejected[len(repeated) :]
        prompt = with_system(prompt, optional(row, "system"))
        for answer in (chosen, rejected):
            _check_answer(prompt, answer)
        return preference(prompt, chosen, rejected, row, place)

    def _turns(self, row: Row, part: str, role: Any) -> Turns:
        if not given(row, part):
            raise RowFault("missing-part", f"`{part}` is missing")
        value = row[part]
        return (Message(role, value),) if isinstance(value, str) else self.messages(value, part)


def _common(chosen: Turns, rejected: Turns) -> Turns:
    """What both begin with, short of an answer of each."""
    pairs = zip(chosen[:-1], rejected[:-1], strict=False)
    return tuple(left for left, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _check_same(prompt: Turns, repeated: Turns) -> None:
    if prompt and prompt[-1].content not in [message.content for message in repeated]:
        raise RowFault("prompt-mismatch", "the prompt is not what `chosen` and `rejected` both begin with")


def _check_answer(prompt: Turns, answer: Turns) -> None:
    if not prompt or prompt[-1].role == "system":
        raise RowFault("missing-part", "there is no turn before the answers")
    check_order((*prompt, *answer))
    if answer[-1].role != "assistant":
        raise RowFault("no-final-answer", f"an answer ends with the {answer[-1].role}'s turn")
    check_answers(answer)
