"""What formats make of rows: the parts that matter end up where templates and objectives look for them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core.plugins import build
from tunesmith.core.records import Chat, Labelled, Message, Place, Preference, Rated, Record
from tunesmith.core.run import DataSpec
from tunesmith.data.check import check
from tunesmith.data.formats import Format, RowFault
from tunesmith.data.sources import open_source

USER, ANSWER = Message("user", "Hi"), Message("assistant", "Hello!")


def read(name: str, row: dict[str, Any], **options: str) -> Any:
    found = build("format", {name: options})
    assert isinstance(found, Format)
    return found.read(row, Place("f"))


def reason(name: str, row: dict[str, Any]) -> str:
    with pytest.raises(RowFault) as caught:
        read(name, row)
    return caught.value.reason


def test_alpaca_puts_the_input_below_the_instruction_and_history_before() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be brief.", "history": [["a", "b"]]}
    assert read("alpaca", row).messages == (
        Message("system", "Be brief."),
        Message("user", "a"),
        Message("assistant", "b"),
        Message("user", "Add.\n1 2"),
        Message("assistant", "3"),
    )


def test_alpaca_without_input_or_without_instruction() -> None:
    assert read("alpaca", {"instruction": "Add.", "input": "", "output": "3"}).messages[0].content == "Add."
    assert read("alpaca", {"instruction": "", "input": "1+2", "output": "3"}).messages[0].content == "1+2"


def test_sharegpt_calls_become_tool_calls() -> None:
    call = {"name": "add", "arguments": {"a": 1}}
    row = {
        "conversations": [
            {"from": "human", "value": "Hi"},
            {"from": "function_call", "value": json.dumps(call)},
            {"from": "observation", "value": "[3]"},
            {"from": "gpt", "value": "3"},
        ],
        "system": "Be brief.",
        "tools": json.dumps([{"name": "add", "parameters": {}}]),
    }
    chat = read("sharegpt", row)
    assert [message.role for message in chat.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert chat.messages[2].tool_calls == ({"type": "function", "function": call},)
    assert chat.tools == ({"type": "function", "function": {"name": "add", "parameters": {}}},)


def test_sharegpt_names_of_keys_and_roles_can_be_set() -> None:
    row = {"conversations": [{"who": "Q", "what": "Hi"}, {"who": "A", "what": "Hello!"}]}
    tags = {"role_tag": "who", "content_tag": "what", "user_tag": "Q", "assistant_tag": "A"}
    assert read("sharegpt", row, **tags).messages == (USER, ANSWER)


def test_messages_of_every_shape_mean_the_same() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    plain = [
        {"role": "developer", "content": "S"},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": None, "reasoning_content": "R", "tool_calls": [call]},
        {"role": "tool", "content": "3", "name": "add"},
        {"role": "assistant", "content": "A", "train": False, "weight": 0.5},
    ]
    typed = [
        {"role": "system", "content": [{"type": "text", "text": "S"}]},
        {"role": "user", "content": [{"type": "text", "value": "Q"}]},
        {
            "role": "assistant",
            "content": [{"type": "reasoning", "value": "R"}, {"type": "tool_call", "value": json.dumps(call)}],
        },
        {"role": "tool", "content": [{"type": "text", "text": "3"}], "name": "add"},
        {"role": "assistant", "content": [{"type": "text", "text": "A"}], "train": False, "weight": 0.5},
    ]
    done = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}, "id": "1"}
    expected = (
        Message("system", "S"),
        Message("user", "Q"),
        Message("assistant", "", (done,), "R"),
        Message("tool", "3", name="add"),
        Message("assistant", "A", learn=False, weight=0.5),
    )
    assert read("messages", {"messages": plain}).messages == expected
    assert read("messages", {"messages": typed}).messages == expected


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ({"content": 5}, "wrong-type"),
        ({"content": None}, "wrong-type"),
        ({"content": {"text": "a"}}, "wrong-type"),
        ({"content": "  "}, "empty-output"),
        ({"content": [{"type": "image_url", "image_url": "x"}]}, "not-text"),
        ({"content": "a", "train": 1}, "wrong-type"),
        ({"content": "a", "weight": -1}, "wrong-type"),
        ({"content": "a", "tool_calls": [{"function": {"arguments": "{}"}}]}, "bad-tool-call"),
        ({"content": "a", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, "bad-tool-call"),
        ({"content": "a", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}, "bad-tool-call"),
    ],
)
def test_what_an_answer_cannot_be(turn: dict[str, Any], expected: str) -> None:
    row = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", **turn}]}
    assert reason("messages", row) == expected


def test_faults_name_the_type_that_was_seen() -> None:
    with pytest.raises(RowFault, match=r"`output` is a number \(5\); it must be a string"):
        read("alpaca", {"instruction": "q", "output": 5})
    with pytest.raises(RowFault, match=r"`messages\[0\].content` is null"):
        read("messages", {"messages": [{"role": "user", "content": None}]})


def test_only_the_assistant_calls_tools() -> None:
    call = {"function": {"name": "f", "arguments": {}}}
    row = {"messages": [{"role": "user", "content": "Q", "tool_calls": [call]}, {"role": "assistant", "content": "A"}]}
    assert reason("messages", row) == "bad-tool-call"


def test_preferences_of_every_shape_mean_the_same() -> None:
    turns = [{"role": "user", "content": "Hi"}]
    good, bad = {"role": "assistant", "content": "Hello!"}, {"role": "assistant", "content": "What?"}
    sharegpt = {
        "conversations": [{"from": "human", "value": "Hi"}],
        "chosen": {"from": "gpt", "value": "Hello!"},
        "rejected": {"from": "gpt", "value": "What?"},
    }
    rows: list[tuple[str, dict[str, Any]]] = [
        ("preference_alpaca", {"instruction": "Hi", "chosen": "Hello!", "rejected": "What?"}),
        ("preference_alpaca", {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}),
        ("preference_messages", sharegpt),
        ("preference_messages", {"messages": turns, "chosen": good, "rejected": bad}),
        ("preference_messages", {"messages": turns, "chosen": "Hello!", "rejected": "What?"}),
        ("preference_messages", {"prompt": turns, "chosen": [good], "rejected": [bad]}),
        ("preference_messages", {"prompt": "Hi", "chosen": [good], "rejected": [bad]}),
        ("preference_messages", {"chosen": [*turns, good], "rejected": [*turns, bad]}),
        ("preference_messages", {"prompt": "Hi", "chosen": [*turns, good], "rejected": [*turns, bad]}),
        ("preference_messages", {"prompt": turns, "chosen": [*turns, good], "rejected": [*turns, bad]}),
    ]
    for name, row in rows:
        assert build("format", name).matches(row)  # type: ignore[attr-defined]
        record = read(name, row)
        assert (record.prompt, record.chosen, record.rejected) == ((USER,), (ANSWER,), (Message("assistant", "What?"),))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Hi", "chosen": "a", "rejected": "a"}, "equal-answers"),
        ({"prompt": "Hi", "chosen": "a", "rejected": ""}, "empty-output"),
        ({"prompt": "Hi", "chosen": "a", "rejected": None}, "wrong-type"),
        ({"prompt": "Hi", "chosen": "a"}, "missing-part"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "empty-input"),
    ],
)
def test_preferences_that_cannot_be_used(row: dict[str, Any], expected: str) -> None:
    assert reason("preference_alpaca", row) == expected


def test_a_prompt_that_the_answers_do_not_repeat_is_a_fault() -> None:
    turns = [{"role": "user", "content": "Hi"}]
    row = {
        "prompt": "Bye",
        "chosen": [*turns, ANSWER.plain()],
        "rejected": [*turns, {"role": "assistant", "content": "?"}],
    }
    assert reason("preference_messages", row) == "prompt-mismatch"


def test_ratings_of_every_shape_mean_the_same() -> None:
    turns = [USER.plain(), ANSWER.plain()]
    rows: list[dict[str, Any]] = [
        {"instruction": "Hi", "output": "Hello!", "kto_tag": True},
        {"instruction": "Hi", "input": "", "output": "Hello!", "label": "True"},
        {"prompt": "Hi", "completion": "Hello!", "label": True},
        {"prompt": turns[:1], "completion": turns[1:], "label": True},
        {"messages": turns, "label": True},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}], "kto_tag": True},
    ]
    for row in rows:
        record = read("rated", row)
        assert (record.prompt, record.answer, record.good) == ((USER,), (ANSWER,), True)
        assert read("rated", {**row, "label" if "label" in row else "kto_tag": False}).good is False


def test_a_rated_answer_may_call_a_tool_first() -> None:
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "A"},
    ]
    record = read("rated", {"messages": turns, "label": False})
    assert [message.role for message in record.prompt] == ["system", "user"]
    assert [message.role for message in record.answer] == ["assistant", "tool", "assistant"]


@pytest.mark.parametrize(("label", "text"), [("good", "good"), (1, "1"), (True, "true"), (2.0, "2"), (" x ", "x")])
def test_labels_become_strings(label: Any, text: str) -> None:
    for column in ("text", "sentence", "review", "content"):
        assert read("labelled", {column: "t", "label": label}) == Labelled("t", (text,), place=Place("f"))


REAL: dict[str, tuple[str, type[Record], int, int]] = {
    "sft/rasbt_instructions_1100.json": ("alpaca", Chat, 1100, 0),
    "sft/identity.json": ("alpaca", Chat, 91, 0),
    "sft/glaive_toolcall_en_demo.json": ("sharegpt", Chat, 300, 0),
    "sft/glaive_toolcall_zh_demo.json": ("sharegpt", Chat, 298, 2),
    "sft/sharegpt_dummy_500.json": ("sharegpt", Chat, 500, 0),
    "sft/reason_tool_use_demo_50.jsonl": ("messages", Chat, 50, 0),
    "pref/rasbt_preference_1100.json": ("preference_alpaca", Preference, 1094, 6),
    "pref/dpo_en_demo.json": ("preference_messages", Preference, 300, 0),
    "pref/kto_en_demo.json": ("rated", Rated, 300, 0),
    "corpora/zh_dialogues.jsonl.gz": ("messages", Chat, 1000, 0),
}


@pytest.mark.parametrize("path", REAL)
def test_real_files_are_found_and_read(shared_data: Path, path: str) -> None:
    name, kind, used, rejected = REAL[path]
    spec = DataSpec(path=str(shared_data / path))
    source = open_source(spec)[0]
    kinds = Counter(type(item) for item in source.records())
    assert source.format.name() == name
    assert kinds[kind] == used
    assert kinds.total() == used + rejected
    own = check([spec]).sources[0]
    assert (own.used, own.lost) == (used, rejected)


def test_reasoning_and_calls_of_a_real_file_are_kept(shared_data: Path) -> None:
    file = shared_data / "sft" / "reason_tool_use_demo_50.jsonl"
    parts = Counter(
        part["type"]
        for line in file.read_text("utf-8").splitlines()
        for turn in json.loads(line)["messages"]
        for part in turn["content"]
    )
    messages = [
        message
        for record in open_source(DataSpec(path=str(file)))[0].records()
        if isinstance(record, Chat)
        for message in record.messages
    ]
    assert sum(len(message.tool_calls) for message in messages) == parts["tool_call"]
    assert sum(message.reasoning is not None for message in messages) == parts["reasoning"]
