"""Sources: what a path may be, how the format is found, what converts into what, and what a fingerprint covers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tunesmith.core.problem import Problem
from tunesmith.core.records import Chat, Labelled, Message, Place, Preference, Rated, Record, Text
from tunesmith.core.run import DataSpec
from tunesmith.data.convert import convert
from tunesmith.data.report import Rejected
from tunesmith.data.sources import open_source

ROW = {"instruction": "q", "output": "a"}


def write(file: Path, *rows: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return file


def records(path: Path | str, **options: Any) -> list[Record | Rejected]:
    (source,) = open_source(DataSpec(path=str(path), **options))
    return list(source.records())


def problem(path: Path | str, **options: Any) -> str:
    with pytest.raises(Problem) as caught:
        open_source(DataSpec(path=str(path), **options))
    return str(caught.value)


def test_relative_paths_start_from_the_base(tmp_path: Path) -> None:
    write(tmp_path / "sub" / "rows.jsonl", ROW)
    (source,) = open_source(DataSpec(path="sub/rows.jsonl"), tmp_path)
    (record,) = source.records()
    assert isinstance(record, Chat)
    assert record.place == Place("sub/rows.jsonl", 1, 0)
    assert source.reason == "columns `instruction` and `output` in the one row"


def test_a_folder_is_read_sorted_and_through(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c/d.jsonl.gz", "c/a.csv"):
        file = tmp_path / "data" / name
        text = f"instruction,output\n{name},a\n" if name.endswith("csv") else json.dumps({**ROW, "instruction": name})
        file.parent.mkdir(parents=True, exist_ok=True)
        import gzip

        file.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    for name in ("README.md", "model.bin", ".hidden/x.jsonl", "dataset_info.json"):
        write(tmp_path / "data" / name, ROW)
    (source,) = open_source(DataSpec(path="data"), tmp_path)
    assert [file.name for file in source.files] == ["data/a.jsonl", "data/b.jsonl", "data/c/a.csv", "data/c/d.jsonl.gz"]
    asked = [record.messages[0].content for record in source.records() if isinstance(record, Chat)]
    assert asked == ["a.jsonl", "b.jsonl", "c/a.csv", "c/d.jsonl.gz"]
    assert any("3 files" in note for note in source.notes)


def test_a_folder_of_texts_is_a_text_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.md").write_text("two")
    assert [record.text for record in records(tmp_path) if isinstance(record, Text)] == ["one", "two"]


def test_a_folder_without_rows_is_a_problem(tmp_path: Path) -> None:
    assert "no file of this folder holds rows" in problem(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="links and pipes of Unix")
def test_links_out_of_a_folder_pipes_and_devices_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "outside.jsonl", ROW)
    folder = tmp_path / "data"
    write(folder / "a.jsonl", ROW)
    (folder / "b.jsonl").symlink_to(tmp_path / "outside.jsonl")
    assert "leads outside" in problem(folder)
    (folder / "b.jsonl").unlink()
    (folder / "more").symlink_to(tmp_path)
    assert "leads outside" in problem(folder)
    (folder / "more").unlink()
    os.mkfifo(folder / "pipe.jsonl")
    assert "no regular file" in problem(folder)
    assert "no regular file" in problem(folder / "pipe.jsonl")
    assert "no regular file" in problem("/dev/zero")


def test_what_is_not_there_is_a_problem(tmp_path: Path) -> None:
    assert "no such file" in problem(tmp_path / "none.jsonl")
    assert "no such file" in problem("none.jsonl")
    assert "no such file" in problem("../none")


def test_a_hub_that_cannot_be_reached_is_a_problem() -> None:
    pytest.importorskip("datasets")
    assert "cannot be loaded" in problem("nobody/no-such-data-set")


def with_modelscope(monkeypatch: pytest.MonkeyPatch, fetch: Any) -> None:
    for name in ("modelscope", "modelscope.hub", "modelscope.hub.snapshot_download"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["modelscope.hub.snapshot_download"].dataset_snapshot_download = fetch  # type: ignore[attr-defined]


def test_modelscope_is_fetched_and_read_as_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "train.jsonl", ROW)
    asked: list[Any] = []

    def fetch(name: str, revision: str | None) -> str:
        asked.append((name, revision))
        return str(tmp_path)

    with_modelscope(monkeypatch, fetch)
    (record,) = records("modelscope:org/name", revision="v1")
    assert isinstance(record, Chat)
    assert asked == [("org/name", "v1")]
    assert record.place.file == "modelscope:org/name/train.jsonl"


def test_modelscope_that_fails_or_is_missing_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(name: str, revision: str | None) -> str:
        raise RuntimeError(f"{name} is not there")

    with_modelscope(monkeypatch, fetch)
    assert "org/name is not there" in problem("modelscope:org/name")
    monkeypatch.setitem(sys.modules, "modelscope.hub.snapshot_download", None)
    assert 'pip install "tunesmith[modelscope]"' in problem("modelscope:org/name")


def test_a_local_folder_with_a_split_goes_through_datasets(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    write(tmp_path / "set" / "train.jsonl", ROW, ROW)
    write(tmp_path / "set" / "test.jsonl", {**ROW, "instruction": "t"}, {"instruction": "q", "output": None})
    (source,) = open_source(DataSpec(path=str(tmp_path / "set"), split="test"))
    first, second = source.records()
    assert isinstance(first, Chat)
    assert first.messages[0].content == "t"
    assert isinstance(second, Rejected)
    assert (second.reason, second.place.line) == ("wrong-type", 2)
    assert source.fingerprint() == open_source(source.spec)[0].fingerprint()
    assert "cannot be loaded" in problem(tmp_path / "set", split="none")


def test_options_of_a_hub_on_a_file_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", ROW)
    for option in ("split", "subset", "revision"):
        assert "is for data sets on a hub" in problem(file, **{option: "x"})


def test_columns_rename_only_what_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", {"question": "q", "answer": "a", "system": "s"})
    (record,) = records(file, columns={"instruction": "question", "output": "answer"})
    assert isinstance(record, Chat)
    assert [message.content for message in record.messages] == ["s", "q", "a"]


def test_a_column_that_plays_one_part_plays_no_other(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", {"input": "q", "target": "a"})
    (record,) = records(file, columns={"instruction": "input", "output": "target"})
    assert isinstance(record, Chat)
    assert [message.content for message in record.messages] == ["q", "a"]


@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        ({"question": "q", "reply": "a"}, "columns: {instruction: question, output: reply}"),
        ({"prompt": "q", "reply": "a"}, "columns: {instruction: prompt, output: reply}"),
        ({"riddle": "q", "answer": "a"}, "columns: {instruction: riddle, output: answer}"),
        ({"Prompt": "q", "Response": "a", "id": 3}, "columns: {instruction: Prompt, output: Response}"),
        (
            {"question": "q", "better": "a", "worse": "b"},
            "columns: {instruction: question, chosen: better, rejected: worse}",
        ),
        ({"body": "t"}, "columns: {text: body}"),
        ({"sentence": "t", "sentiment": 1}, "columns: {text: sentence, label: sentiment}"),
        ({"dialogue": [{"role": "user"}]}, "columns: {messages: dialogue}"),
        (
            {"sentence_A": "a", "sentence_B": "b", "relatedness_score": "4.5", "judgment": "neutral"},
            "columns: {sentence1: sentence_A, sentence2: sentence_B, score: relatedness_score}",
        ),
    ],
)
def test_unknown_columns_are_shown_with_a_mapping(tmp_path: Path, row: dict[str, Any], mapping: str) -> None:
    text = problem(write(tmp_path / "rows.jsonl", row, row))
    assert mapping in text
    assert all(f"{name} (" in text for name in row)


def test_suggested_mappings_work(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", {"riddle": "q", "answer": "a"})
    assert len(records(file, columns={"instruction": "riddle", "output": "answer"})) == 1


def test_columns_that_do_not_fit_are_problems(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", ROW)
    assert "no row has a column 'outptu'. Did you mean 'output'?" in problem(file, columns={"output": "outptu"})
    assert "Did you mean 'instruction'?" in problem(file, format="alpaca", columns={"instuction": "instruction"})
    assert "there is no format 'alpacca'. Did you mean 'alpaca'?" in problem(file, format="alpacca")
    assert "has no turns" in problem(file, format="alpaca", tags={"role_tag": "who"})
    assert "no such option" in problem(file, format="sharegpt", tags={"rolle_tag": "who"})


def test_rows_of_two_formats_in_equal_numbers_are_a_problem(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", ROW, {"text": "t"})
    assert "alpaca or text" in problem(file)


def test_the_most_rows_win_and_the_others_are_listed(tmp_path: Path) -> None:
    found = records(write(tmp_path / "rows.jsonl", *[ROW] * 5, {"text": "t"}))
    assert [type(item) for item in found] == [Chat] * 5 + [Rejected]


def test_limit_takes_the_first_rows(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", *({**ROW, "output": str(number)} for number in range(9)))
    assert len(records(file, limit=4)) == 4


def test_a_fingerprint_covers_content_and_reading_but_not_the_place(tmp_path: Path) -> None:
    def fingerprint(path: Path, **options: Any) -> str:
        return open_source(DataSpec(path=str(path), **options))[0].fingerprint()

    file = write(tmp_path / "rows.jsonl", ROW)
    twin = write(tmp_path / "other" / "rows.jsonl", ROW)
    other = write(tmp_path / "more.jsonl", {**ROW, "output": "b"})
    assert fingerprint(file) == fingerprint(twin) == fingerprint(file, weight=2.0, on_bad_row="stop")
    assert fingerprint(file, format="alpaca") == fingerprint(file)
    different = {fingerprint(file), fingerprint(other), fingerprint(file, system="s"), fingerprint(file, limit=1)}
    assert len(different) == 4


QUESTION, ANSWER = Message("user", "Hi"), Message("assistant", "Hello!")
SYSTEM = Message("system", "S")
PLACE = Place("f", 3, 9)


def test_labelled_rows_become_chats() -> None:
    spec = DataSpec(path="f", prompt="Good or bad? {text}", system="S")
    expected = Chat((SYSTEM, Message("user", "Good or bad? nice {text}"), Message("assistant", "good")), place=PLACE)
    assert convert(Labelled("nice {text}", ("good",), place=PLACE), Chat, spec) == expected
    plain = convert(Labelled("nice", ("good",), place=PLACE), Chat, DataSpec(path="f"))
    assert plain == Chat((Message("user", "nice"), Message("assistant", "good")), place=PLACE)


def test_system_heads_what_has_none() -> None:
    spec = DataSpec(path="f", system="S")
    own = Message("system", "own")
    assert convert(Chat((QUESTION, ANSWER)), Chat, spec) == Chat((SYSTEM, QUESTION, ANSWER))
    assert convert(Chat((own, QUESTION, ANSWER)), Chat, spec) == Chat((own, QUESTION, ANSWER))
    pair = Preference((QUESTION,), (ANSWER,), (Message("assistant", "?"),))
    assert convert(pair, Preference, spec) == Preference((SYSTEM, QUESTION), pair.chosen, pair.rejected)
    assert convert(Rated((QUESTION,), (ANSWER,), True), Rated, spec) == Rated((SYSTEM, QUESTION), (ANSWER,), True)
    assert convert(Text("t"), Text, spec) == Text("t")


@pytest.mark.parametrize(("record", "to"), [(Text("t"), Chat), (Preference((QUESTION,), (ANSWER,), (QUESTION,)), Text)])
def test_what_does_not_convert_names_the_objectives_that_take_it(record: Record, to: type[Record]) -> None:
    with pytest.raises(Problem, match=r"Objectives for \w+ rows: (pretrain|dpo, reward)"):
        convert(record, to, DataSpec(path="f"))


def test_a_prompt_without_the_text_is_a_problem(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", {"text": "t", "label": "l"})
    assert "{text}" in problem(file, prompt="Good or bad?")


def test_checking_imports_no_heavy_library(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", ROW)
    code = (
        "import sys\n"
        "from tunesmith.core.run import DataSpec\n"
        "from tunesmith.data.check import check\n"
        f"report = check([DataSpec(path={str(file)!r})])\n"
        "assert report.sources[0].used == 1\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'datasets', 'transformers', 'zstandard'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
