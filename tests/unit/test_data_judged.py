"""Prompts with keys, related texts, tagged words and several labels: every shape, every fault, and real files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import made_codecs
import pytest

from tunesmith.core.plugins import build, names
from tunesmith.core.records import Chat, Labelled, Message, Preference, Prompt, Rated, Record, Related, Tagged, Text
from tunesmith.core.run import DataSpec
from tunesmith.data.build import Part, build_store
from tunesmith.data.convert import convert
from tunesmith.data.encode import Rules
from tunesmith.data.formats import Format, RowFault
from tunesmith.data.report import Rejected
from tunesmith.data.sources import open_source

ASKED, SAID, AGAIN = Message("user", "2 + 2?"), Message("assistant", "4"), Message("user", "And 3?")
TURNS = [message.plain() for message in (ASKED, SAID, AGAIN)]


def format_of(name: str, **tags: str) -> Format:
    found = build("format", {name: tags})
    assert isinstance(found, Format)
    return found


def read(name: str, row: dict[str, Any]) -> Any:
    return format_of(name).read(row, Text("").place)


def reason(name: str, row: dict[str, Any]) -> str:
    with pytest.raises(RowFault) as caught:
        read(name, row)
    return caught.value.reason


def found(row: dict[str, Any]) -> list[str]:
    """The formats that a row looks like."""
    return [name for name in names("format") if format_of(name).matches(row)]


def opened(path: Path, **options: Any) -> list[Record]:
    (source,) = open_source(DataSpec(path=str(path), **options))
    return [record for record in source.records() if not isinstance(record, Rejected)]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2 + 2?", "answer": "4"},
        {"question": "2 + 2?", "answer": "4", "id": "a"},
        {"instruction": "2 + 2?", "input": "", "solution": 4},
        {"problem": "2 + 2?", "ground_truth": 4.0},
        {"prompt": [TURNS[0]], "key": " 4 "},
        {"prompt": TURNS[0], "answer": "4"},
        {"question": [TURNS[0]], "answer": "4"},
        {"messages": [TURNS[0]], "answer": "4"},
        {"conversations": [{"from": "human", "value": "2 + 2?"}], "answer": "4"},
    ],
)
def test_prompts_of_every_shape_mean_the_same(row: dict[str, Any]) -> None:
    assert found(row) == ["prompt"]
    assert read("prompt", row) == Prompt((ASKED,), "4")


def test_prompts_may_have_many_turns_a_system_and_tools() -> None:
    tool = {"name": "f", "parameters": {}}
    whole = Prompt((Message("system", "S"), ASKED, SAID, AGAIN), "6", ({"type": "function", "function": tool},))
    more = {"system": "S", "tools": [tool], "answer": "6"}
    history = [["2 + 2?", "4"]]
    for row in (
        {"messages": TURNS, **more},
        {"prompt": TURNS, **more},
        {"prompt": "And 3?", "history": history, **more},
    ):
        assert found(row) == ["prompt"]
        assert read("prompt", row) == whole
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    after = [*TURNS, call, {"role": "tool", "content": "6"}]
    assert read("prompt", {"messages": after, "key": "6"}).messages[-1] == Message("tool", "6")


@pytest.mark.parametrize("row", [{"prompt": "q"}, {"prompt": TURNS}, {"prompt": "q", "answer": None, "id": 3}])
def test_a_prompt_may_stand_alone(row: dict[str, Any]) -> None:
    assert found(row) == ["prompt"]
    assert read("prompt", row).answer == ""


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q", "answer": ""}, "empty-output"),
        ({"prompt": "q", "answer": ["4"]}, "wrong-type"),
        ({"prompt": "", "answer": "4"}, "empty-input"),
        ({"prompt": 5, "answer": "4"}, "wrong-type"),
        ({"prompt": [], "answer": "4"}, "no-turns"),
        ({"messages": TURNS[:2], "answer": "4"}, "role-order"),
        ({"messages": TURNS[1:], "answer": "4"}, "role-order"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": " "}, TURNS[2]], "answer": "4"}, "empty-output"),
    ],
)
def test_prompts_that_cannot_be_used(row: dict[str, Any], expected: str) -> None:
    assert reason("prompt", row) == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": TURNS[:2], "answer": "4"}, ["messages"]),
        ({"messages": TURNS, "id": "x"}, ["messages"]),
        ({"messages": TURNS[:2], "label": True, "answer": "4"}, ["rated"]),
        ({"instruction": "q", "output": "a", "answer": "4"}, ["alpaca"]),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "answer": "4"}, ["preference_alpaca"]),
        ({"prompt": "q", "completion": "a", "label": False, "answer": "4"}, ["rated"]),
        ({"text": "t", "question": "q", "answer": "a"}, ["text"]),
        ({"text": "t", "label": "l", "question": "q", "answer": "a"}, ["labelled"]),
        ({"prompt": "q", "reply": "a"}, []),
        ({"instruction": "q"}, []),
        ({"text": "t", "tokens": ["a"], "tags": ["O"]}, ["text"]),
        ({"text": "t", "query": "q", "positive": "p"}, ["text"]),
        ({"text": "t", "labels": 3}, ["text"]),
        ({"instruction": "q", "chosen": "a", "rejected": "b", "query": "x", "positive": "y"}, ["preference_alpaca"]),
    ],
)
def test_what_was_found_before_is_found_still(row: dict[str, Any], expected: list[str]) -> None:
    assert found(row) == expected


@pytest.mark.parametrize(
    ("row", "others", "grades"),
    [
        ({"anchor": "a", "positive": "b"}, ("b",), (1.0,)),
        ({"query": "a", "positive": "b", "negative": "c"}, ("b", "c"), (1.0, 0.0)),
        ({"query": "a", "pos": ["b", "c"], "neg": ["d", "e"]}, ("b", "c", "d", "e"), (1.0, 1.0, 0.0, 0.0)),
        ({"anchor": "a", "positives": ["b"], "negatives": []}, ("b",), (1.0,)),
        (
            {"query": "a", "positive": "b", "negative_10": "d", "negative_2": "c", "negative_3": None},
            ("b", "c", "d"),
            (1.0, 0.0, 0.0),
        ),
        ({"sentence1": "a", "sentence2": "b", "score": 4.5}, ("b",), (4.5,)),
        ({"sentence1": "a", "sentence2": "b", "label": 1}, ("b",), (1.0,)),
        ({"sentence1": "a", "sentence2": "b", "label": False}, ("b",), (0.0,)),
        ({"sentence1": "a", "sentence2": "b", "score": " -0.25 ", "label": "NEUTRAL"}, ("b",), (-0.25,)),
    ],
)
def test_related_texts_of_every_shape(row: dict[str, Any], others: tuple[str, ...], grades: tuple[float, ...]) -> None:
    assert found(row) == ["related"]
    assert read("related", row) == Related("a", others, grades)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"anchor": "a"}, "missing-part"),
        ({"positive": "a"}, "missing-part"),
        ({"anchor": "a", "positive": []}, "empty-text"),
        ({"anchor": "a", "positive": [" "]}, "empty-text"),
        ({"anchor": "", "positive": "b"}, "empty-text"),
        ({"anchor": "a", "positive": "b", "negative": 3}, "wrong-type"),
        ({"anchor": "a", "positive": "b", "negatives": ["c", None]}, "wrong-type"),
        ({"sentence1": "a", "sentence2": "b"}, "missing label"),
        ({"sentence1": "a", "score": 3}, "missing-part"),
        ({"sentence1": "a", "sentence2": "b", "score": "high"}, "wrong-type"),
        ({"sentence1": "a", "sentence2": "b", "score": "nan"}, "wrong-type"),
    ],
)
def test_related_texts_that_cannot_be_used(row: dict[str, Any], expected: str) -> None:
    assert reason("related", row) == expected


def test_a_pair_with_a_word_for_a_label_is_no_scored_pair() -> None:
    assert found({"sentence1": "a", "sentence2": "b", "label": "entailment"}) == []


@pytest.mark.parametrize("words", ["tokens", "words"])
@pytest.mark.parametrize("tags", ["tags", "ner_tags", "labels", "pos_tags"])
def test_tagged_words_of_every_shape(words: str, tags: str) -> None:
    row = {words: ["In", "Rome", 7], tags: ["O", 3, "O"]}
    assert found(row) == ["tagged"]
    assert read("tagged", row) == Tagged(("In", "Rome", "7"), ("O", "3", "O"))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "tag-count"),
        ({"tokens": [], "tags": []}, "empty-text"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, "empty-text"),
        ({"tokens": ["a"], "tags": [""]}, "missing label"),
        ({"tokens": ["a"]}, "missing label"),
        ({"tags": ["O"]}, "missing-part"),
        ({"tokens": ["a"], "tags": [None]}, "wrong-type"),
        ({"tokens": "a", "tags": "O"}, "wrong-type"),
    ],
)
def test_tagged_words_that_cannot_be_used(row: dict[str, Any], expected: str) -> None:
    assert reason("tagged", row) == expected


def test_several_labels_are_a_list() -> None:
    assert found({"text": "t", "labels": ["a"]}) == ["labelled"]
    assert read("labelled", {"text": "t", "labels": ["b", 3, "b", True]}) == Labelled("t", ("b", "3", "true"))
    assert read("labelled", {"sentence": "t", "labels": []}) == Labelled("t", ())
    assert read("labelled", {"text": "t", "label": 2.5, "labels": ["x"]}) == Labelled("t", ("2.5",))
    assert reason("labelled", {"text": "t", "labels": "a"}) == "wrong-type"
    assert reason("labelled", {"text": "t", "labels": ["a", ""]}) == "missing label"
    assert reason("labelled", {"text": "t"}) == reason("labelled", {"text": "t", "label": " "}) == "missing label"


HISTORY = [["2 + 2?", "4"]]
SHAREGPT = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}, {"from": "human", "value": "And 3?"}]
GOOD, BAD = {"from": "gpt", "value": "6"}, {"from": "gpt", "value": "7"}
BEFORE = (ASKED, SAID, AGAIN)
RANKING = {"chosen": "chosen", "rejected": "rejected"}
REGISTRY: dict[str, tuple[dict[str, Any], dict[str, Any], type[Record]]] = {
    "alpaca ranking": (
        {"ranking": True},
        {"instruction": "And 3?", "history": HISTORY, "chosen": "6", "rejected": "7"},
        Preference,
    ),
    "alpaca ranking, columns": (
        {"ranking": True, "columns": {"prompt": "P", "history": "H", "chosen": "C", "rejected": "R"}},
        {"P": "And 3?", "H": HISTORY, "C": "6", "R": "7"},
        Preference,
    ),
    "sharegpt ranking": (
        {"ranking": True, "formatting": "sharegpt"},
        {"conversations": SHAREGPT, "chosen": GOOD, "rejected": BAD},
        Preference,
    ),
    "sharegpt ranking, columns": (
        {"ranking": True, "formatting": "sharegpt", "columns": {"messages": "M", "chosen": "C", "rejected": "R"}},
        {"M": SHAREGPT, "C": GOOD, "R": BAD},
        Preference,
    ),
    "messages ranking": (
        {
            "ranking": True,
            "formatting": "sharegpt",
            "columns": {"messages": "messages", **RANKING},
            "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
        },
        {
            "messages": TURNS,
            "chosen": {"role": "assistant", "content": "6"},
            "rejected": {"role": "assistant", "content": "7"},
        },
        Preference,
    ),
    "alpaca ratings": (
        {"columns": {"prompt": "instruction", "response": "output", "history": "history", "kto_tag": "ok"}},
        {"instruction": "And 3?", "history": HISTORY, "output": "6", "ok": True},
        Rated,
    ),
    "sharegpt ratings": (
        {"formatting": "sharegpt", "columns": {"messages": "conversations", "kto_tag": "label"}},
        {"conversations": [*SHAREGPT, GOOD], "label": True},
        Rated,
    ),
    "messages ratings": (
        {
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "kto_tag": "label"},
            "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
        },
        {"messages": [*TURNS, {"role": "assistant", "content": "6"}], "label": True},
        Rated,
    ),
}


@pytest.mark.parametrize("name", REGISTRY)
def test_registries_give_multi_turn_preferences_and_ratings(tmp_path: Path, name: str) -> None:
    entry, row, kind = REGISTRY[name]
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    file = tmp_path / "dataset_info.json"
    file.write_text(json.dumps({"one": {"file_name": "rows.json", **entry}}))
    (record,) = opened(Path(f"{file}:one"))
    answer = (Message("assistant", "6"),)
    place = record.place
    expected = {
        Preference: Preference(BEFORE, answer, (Message("assistant", "7"),), place=place),
        Rated: Rated(BEFORE, answer, True, place=place),
    }
    assert record == expected[kind]
    assert convert(record, Prompt, DataSpec(path="f")) == Prompt(BEFORE, place=place)


def test_gsm8k_is_prompts_with_keys_and_chats(shared_data: Path) -> None:
    file = shared_data / "sft" / "gsm8k_train_1000.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    spec = DataSpec(path=str(file))
    prompts = opened(file)
    chats = opened(file, columns={"instruction": "question", "output": "answer"})
    assert {type(record) for record in prompts} == {Prompt}
    assert [record.answer for record in prompts if isinstance(record, Prompt)] == [
        row["answer"].strip() for row in rows
    ]
    assert [convert(record, Chat, spec) for record in prompts] == chats
    assert [convert(record, Prompt, spec) for record in chats] == prompts


@pytest.mark.parametrize(("kind", "note"), [(Chat, "taught as its answer"), (Prompt, None), (Labelled, "is its label")])
def test_gsm8k_becomes_what_the_run_takes(
    shared_data: Path, tmp_path: Path, kind: type[Record], note: str | None
) -> None:
    spec = DataSpec(path=str(shared_data / "sft" / "gsm8k_train_1000.jsonl"), limit=20)
    parts = [Part(source, 0) for source in open_source(spec)]
    store, report = build_store(parts, made_codecs.codec(), Rules(kind, max_tokens=4096), tmp_path)
    assert len(store) == report.sources[0].used == 20
    assert [said for said in report.sources[0].notes if note and note in said] == report.sources[0].notes
    assert (store.learned > 0).all() == (kind is Chat)
    assert [bool(store.row(number).note) for number in range(20)] == [kind is Prompt] * 20


def test_sick_is_scored_pairs_by_its_columns(shared_data: Path) -> None:
    file = shared_data / "benchmarks" / "sick_train.txt"
    rows = [line.split("\t") for line in file.read_text("utf-8").splitlines()[1:]]
    columns = {"sentence1": "sentence_A", "sentence2": "sentence_B", "score": "relatedness_score"}
    records = opened(file, columns=columns)
    expected = [(row[1].strip(), (row[2].strip(),), (float(row[3]),)) for row in rows]
    assert [
        (r.query.strip(), tuple(map(str.strip, r.others)), r.grades) for r in records if isinstance(r, Related)
    ] == expected
    assert [type(record) for record in opened(file)] == [Text]


def test_sst2_is_labelled_by_its_columns(shared_data: Path) -> None:
    file = shared_data / "benchmarks" / "sst2_train.tsv"
    rows = [line.split("\t") for line in file.read_text("utf-8").splitlines()]
    records = opened(file, columns={"text": "column1", "label": "column2"})
    assert Counter(r.label for r in records if isinstance(r, Labelled)) == Counter(row[1] for row in rows)
    assert [r.text for r in records if isinstance(r, Labelled)] == [row[0] for row in rows]


def test_a_text_with_columns_that_is_no_table_stays_a_text(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("Once upon a time\nthere was\na king.\n")
    with pytest.raises(Exception, match="no row has a column 'body'"):
        opened(tmp_path / "book.txt", columns={"text": "body"})
    (tmp_path / "table.txt").write_text("a\tb\nx\ty\nz\tw\n")
    assert [r.text for r in opened(tmp_path / "table.txt", columns={"text": "a"}) if isinstance(r, Text)] == ["x", "z"]
    assert len(opened(tmp_path / "table.txt")) == len(opened(tmp_path / "table.txt", columns={"text": "text"})) == 1
