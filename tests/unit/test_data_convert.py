"""Conversions: what a row's record becomes for the objective that is to learn from it."""

from __future__ import annotations

import itertools

import pytest

from tunesmith.core.problem import Problem
from tunesmith.core.records import (
    KINDS,
    Chat,
    Labelled,
    Message,
    Place,
    Preference,
    Prompt,
    Rated,
    Record,
    Related,
    Tagged,
    Text,
)
from tunesmith.core.run import DataSpec
from tunesmith.data.convert import conversions, convert, told
from tunesmith.data.formats import RowFault

SYSTEM, FIRST, SAID = Message("system", "S"), Message("user", "Hi"), Message("assistant", "Hello!")
QUESTION, GOOD, BAD = Message("user", "2 + 2?"), Message("assistant", "4"), Message("assistant", "5")
TOOLS = ({"type": "function", "function": {"name": "f", "parameters": {}}},)
PLACE = Place("f", 3, 9)
BEFORE = (FIRST, SAID, QUESTION)
SPEC = DataSpec(path="f", prompt="Good or bad? {text}")
RECORDS: dict[type[Record], Record] = {
    Text: Text("t", place=PLACE),
    Chat: Chat((*BEFORE, GOOD), TOOLS, place=PLACE),
    Preference: Preference(BEFORE, (GOOD,), (BAD,), TOOLS, place=PLACE),
    Rated: Rated(BEFORE, (GOOD,), True, TOOLS, place=PLACE),
    Labelled: Labelled("nice", ("good",), place=PLACE),
    Tagged: Tagged(("a",), ("O",), place=PLACE),
    Related: Related("a", ("b",), (1.0,), place=PLACE),
    Prompt: Prompt(BEFORE, "4", TOOLS, place=PLACE),
}
EXPECTED: dict[tuple[type[Record], type[Record]], list[Record]] = {
    (Labelled, Chat): [Chat((Message("user", "Good or bad? nice"), Message("assistant", "good")), place=PLACE)],
    (Labelled, Prompt): [Prompt((Message("user", "Good or bad? nice"),), "good", place=PLACE)],
    (Labelled, Text): [Text("nice", place=PLACE)],
    (Chat, Prompt): [Prompt(BEFORE, "4", TOOLS, place=PLACE)],
    (Prompt, Chat): [Chat((*BEFORE, GOOD), TOOLS, place=PLACE)],
    (Chat, Labelled): [Labelled("Hi\nHello!\n2 + 2?", ("4",), place=PLACE)],
    (Prompt, Labelled): [Labelled("Hi\nHello!\n2 + 2?", ("4",), place=PLACE)],
    (Preference, Chat): [Chat((*BEFORE, GOOD), TOOLS, place=PLACE)],
    (Preference, Prompt): [Prompt(BEFORE, "", TOOLS, place=PLACE)],
    (Preference, Rated): [
        Rated(BEFORE, (GOOD,), True, TOOLS, place=PLACE),
        Rated(BEFORE, (BAD,), False, TOOLS, place=PLACE),
    ],
    (Rated, Prompt): [Prompt(BEFORE, "", TOOLS, place=PLACE)],
}


@pytest.mark.parametrize(("kind", "to"), list(itertools.product(KINDS, KINDS)))
def test_every_kind_becomes_what_it_should_or_is_refused(kind: type[Record], to: type[Record]) -> None:
    record = RECORDS[kind]
    if kind is to:
        assert conversions(record, to, SPEC) == (record,)
        assert told(record, to) is None
    elif (kind, to) in EXPECTED:
        assert list(conversions(record, to, SPEC)) == EXPECTED[kind, to]
        assert told(record, to)
    else:
        with pytest.raises(
            Problem, match=f"its rows are {kind.__name__} records, and the objective takes {to.__name__}"
        ):
            conversions(record, to, SPEC)
        assert told(record, to) is None


@pytest.mark.parametrize("to", [Chat, Preference, Rated, Prompt])
def test_system_heads_whatever_has_none(to: type[Record]) -> None:
    spec = DataSpec(path="f", system="S")
    for record in (RECORDS[kind] for kind in (to, *(kind for kind, other in EXPECTED if other is to))):
        for made in conversions(record, to, spec):
            messages = made.prompt if isinstance(made, (Preference, Rated)) else getattr(made, "messages", ())
            assert [message for message in messages if message.role == "system"] == [SYSTEM]
            assert messages[0] == SYSTEM


@pytest.mark.parametrize(
    ("record", "to", "reason"),
    [
        (Labelled("t", ()), Chat, "missing label"),
        (Prompt((QUESTION,)), Chat, "no-final-answer"),
        (Chat((GOOD,)), Prompt, "no-final-answer"),
        (Prompt((QUESTION,)), Labelled, "missing label"),
    ],
)
def test_what_lacks_a_part_is_a_fault_of_the_row(record: Record, to: type[Record], reason: str) -> None:
    with pytest.raises(RowFault) as caught:
        conversions(record, to, SPEC)
    assert caught.value.reason == reason


def test_one_record_is_wanted_where_two_are_made() -> None:
    with pytest.raises(Problem, match="Preference records"):
        convert(RECORDS[Preference], Rated, SPEC)
