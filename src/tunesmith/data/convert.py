"""From the records that rows hold to those that an objective takes.

    Labelled ──▶ Chat, Prompt        the text is asked with `prompt`; the label is the answer, or the key
    Labelled ──▶ Text                without its label
    Chat ──────▶ Prompt              what stands before the last answer; that answer is the key
    Prompt ────▶ Chat                the key is the answer
    Chat, Prompt ▶ Labelled          the turns as one text; the last answer, or the key, is its label
    Preference ▶ Chat, Prompt        with the better answer; without answers
    Preference ▶ Rated, Rated        the better answer found good, the worse one bad
    Rated ─────▶ Prompt              without the answer

Every other pair of kinds is a Problem. `system` heads what has no system turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from tunesmith.core.plugins import names
from tunesmith.core.problem import Problem
from tunesmith.core.records import (
    Chat,
    Labelled,
    Message,
    Preference,
    Prompt,
    Rated,
    Record,
    Related,
    Tagged,
    Text,
)
from tunesmith.data.formats import RowFault

if TYPE_CHECKING:
    from tunesmith.core.run import DataSpec

TAKES: Mapping[type[Record], tuple[str, ...]] = {
    Text: ("pretrain",),
    Chat: ("sft", "seq2seq", "distill"),
    Preference: ("dpo", "reward", "orpo", "simpo", "cpo"),
    Rated: ("kto", "bco"),
    Labelled: ("classify", "regress", "sft (with `prompt`)"),
    Tagged: ("tag",),
    Related: ("embed", "rerank"),
    Prompt: ("grpo", "reinforce", "ppo", "sft (the key is the answer)"),
}
"""Objectives that learn from each kind of record, for hints."""

Convert = Callable[[Any, "DataSpec"], tuple[Record, ...]]


def convert(record: Record, to: type[Record], spec: DataSpec) -> Record:
    """A record as the one record of another kind that it makes.

    Raises:
        Problem: there is no way from this kind to that one, or it makes several.
        RowFault: this record lacks what the other kind needs.
    """
    found = conversions(record, to, spec)
    if len(found) != 1:
        raise _no_way(record, to, spec)
    return found[0]


def conversions(record: Record, to: type[Record], spec: DataSpec) -> tuple[Record, ...]:
    """The records of a kind that a record makes: itself, or what it becomes, headed by `system` where that is set.

    Raises:
        Problem: there is no way from this kind to that one.
        RowFault: this record lacks what the other kind needs.
    """
    if isinstance(record, to):
        return (_headed(record, spec),)
    way = _WAYS.get((type(record), to))
    if way is None:
        raise _no_way(record, to, spec)
    return tuple(_headed(made, spec) for made in way[1](record, spec))


def told(record: Record, to: type[Record]) -> str | None:
    """What a person should know of a conversion; None where there is none."""
    way = None if isinstance(record, to) else _WAYS.get((type(record), to))
    return way[0] if way else None


def _no_way(record: Record, to: type[Record], spec: DataSpec) -> Problem:
    kind = type(record).__name__
    known = [name for name in TAKES.get(type(record), ()) if name.partition(" ")[0] in names("objective")]
    return Problem(
        spec.path,
        f"its rows are {kind} records, and the objective takes {to.__name__} records",
        f"Objectives for {kind} rows: {', '.join(known)}" if known else "Take other data or another objective",
    )


def _headed(record: Record, spec: DataSpec) -> Record:
    if not spec.system:
        return record
    if isinstance(record, (Chat, Prompt)):
        return replace(record, messages=_with_system(record.messages, spec.system))
    if isinstance(record, (Preference, Rated)):
        return replace(record, prompt=_with_system(record.prompt, spec.system))
    return record


def _with_system(messages: tuple[Message, ...], system: str) -> tuple[Message, ...]:
    if messages and messages[0].role == "system":
        return messages
    return (Message("system", system), *messages)


def _asked(record: Labelled, spec: DataSpec) -> Message:
    return Message("user", (spec.prompt or "{text}").replace("{text}", record.text))


def _labelled_chat(record: Labelled, spec: DataSpec) -> tuple[Record, ...]:
    if not record.labels:
        raise RowFault("missing label", "the text has no label, so there is no answer to learn")
    return (Chat((_asked(record, spec), Message("assistant", record.label)), place=record.place),)


def _labelled_prompt(record: Labelled, spec: DataSpec) -> tuple[Record, ...]:
    return (Prompt((_asked(record, spec),), record.label, place=record.place),)


def _labelled_text(record: Labelled, spec: DataSpec) -> tuple[Record, ...]:
    return (Text(record.text, place=record.place),)


def _chat_prompt(record: Chat, spec: DataSpec) -> tuple[Record, ...]:
    *before, answer = record.messages
    if answer.role != "assistant" or not before:
        raise RowFault("no-final-answer", "the chat does not end with an answer, and that answer is the key")
    return (Prompt(tuple(before), answer.content, record.tools, place=record.place),)


def _prompt_chat(record: Prompt, spec: DataSpec) -> tuple[Record, ...]:
    if not record.answer:
        raise RowFault("no-final-answer", "the prompt has no key, so there is no answer to learn")
    messages = (*record.messages, Message("assistant", record.answer))
    return (Chat(messages, record.tools, place=record.place),)


def _prompt_labelled(record: Prompt, spec: DataSpec) -> tuple[Record, ...]:
    if not record.answer.strip():
        raise RowFault("missing label", "the prompt has no key, which would be its label")
    text = "\n".join(message.content for message in record.messages)
    return (Labelled(text, (record.answer.strip(),), place=record.place),)


def _chat_labelled(record: Chat, spec: DataSpec) -> tuple[Record, ...]:
    (prompt,) = _chat_prompt(record, spec)
    return _prompt_labelled(cast(Prompt, prompt), spec)


def _preference_chat(record: Preference, spec: DataSpec) -> tuple[Record, ...]:
    return (Chat((*record.prompt, *record.chosen), record.tools, place=record.place),)


def _preference_rated(record: Preference, spec: DataSpec) -> tuple[Record, ...]:
    answers = ((record.chosen, True), (record.rejected, False))
    return tuple(Rated(record.prompt, answer, good, record.tools, place=record.place) for answer, good in answers)


def _without_answer(record: Preference | Rated, spec: DataSpec) -> tuple[Record, ...]:
    return (Prompt(record.prompt, tools=record.tools, place=record.place),)


_WAYS: Mapping[tuple[type[Record], type[Record]], tuple[str, Convert]] = {
    (Labelled, Chat): ("each text is asked, and its label is the answer", _labelled_chat),
    (Labelled, Prompt): ("each text is asked, and its label is the key of the answer", _labelled_prompt),
    (Labelled, Text): ("texts are learned without their labels", _labelled_text),
    (Chat, Prompt): ("the last answer of each chat is not shown; it is the key of the prompt before it", _chat_prompt),
    (Prompt, Chat): ("the key of each prompt is taught as its answer", _prompt_chat),
    (Chat, Labelled): ("the last answer of each chat is the label of the turns before it", _chat_labelled),
    (Prompt, Labelled): ("the key of each prompt is its label", _prompt_labelled),
    (Preference, Chat): ("the better answer of each preference is taught, the worse one left out", _preference_chat),
    (Preference, Prompt): ("prompts of preferences are taken without their answers", _without_answer),
    (Preference, Rated): (
        "each preference is two rated answers, the better found good, the worse bad",
        _preference_rated,
    ),
    (Rated, Prompt): ("prompts of rated answers are taken without the answers", _without_answer),
}
"""From one kind to another: {(from, to): (what a person should know, the way)}."""
