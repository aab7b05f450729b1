"""In which kind rows are measured: as answers, by rewards, by labels; what cannot be is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core.records import Chat, Labelled, Message, Prompt, Record, Text
from tunesmith.core.run import DataSpec
from tunesmith.evaluate.material import Measured, answered, as_it_is, from_specs, labelled, prompted

SPEC = DataSpec(path="rows.jsonl")
CHAT = Chat((Message("user", "2 + 2"), Message("assistant", "4")))
LABELLED = Labelled("fine", ("good",))
KEYED = Prompt((Message("user", "2 + 2"),), "4")
OPEN = Prompt((Message("user", "2 + 2"),))
TEXT = Text("once")


@pytest.mark.parametrize(
    ("measured", "record", "kind"),
    [
        (answered, CHAT, Chat),
        (answered, LABELLED, Chat),
        (answered, KEYED, Chat),
        (answered, OPEN, Prompt),
        (prompted, CHAT, Prompt),
        (prompted, LABELLED, Prompt),
        (prompted, OPEN, Prompt),
        (prompted, TEXT, Text),
        (labelled, CHAT, Labelled),
        (labelled, KEYED, Labelled),
        (as_it_is, LABELLED, Labelled),
    ],
)
def test_each_kind_becomes_what_is_measured(measured: Measured, record: Record, kind: type[Record]) -> None:
    assert type(measured(record, SPEC)) is kind


def test_the_answer_of_a_chat_is_the_key_of_its_prompt() -> None:
    found = prompted(CHAT, SPEC)
    assert isinstance(found, Prompt)
    assert found.answer == "4"
    assert [message.content for message in found.messages] == ["2 + 2"]


def test_rows_that_cannot_become_it_are_counted(tmp_path: Path) -> None:
    chats: list[Any] = [
        [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}],
        [{"role": "assistant", "content": "4"}],
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    found = from_specs([DataSpec(path=str(file))], (), Path(), Path(), 10, 0, measured=prompted)
    assert [type(record) for record in found.records] == [Prompt]
    assert any("1 rows cannot be used" in note for note in found.notes)
