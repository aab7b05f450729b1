"""dataset_info.json: every key of LLaMA-Factory's registry is honoured, or refused with the way out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core.problem import Problem
from tunesmith.core.records import Chat, Preference, Rated, Text
from tunesmith.core.run import DataSpec
from tunesmith.data.registry import names_in, read_registry, split_address
from tunesmith.data.sources import Source, open_source

ALPACA = {"instruction": "q", "input": "i", "output": "a", "system": "s", "history": [["x", "y"]]}


def registry(folder: Path, **entries: Any) -> Path:
    file = folder / "dataset_info.json"
    file.write_text(json.dumps(entries))
    return file


def rows(folder: Path, name: str, *found: Any) -> None:
    (folder / name).write_text("\n".join(map(json.dumps, found)))


def opened(folder: Path, entry: dict[str, Any], *found: Any, **options: Any) -> Source:
    rows(folder, "rows.jsonl", *found)
    file = registry(folder, one={"file_name": "rows.jsonl", **entry})
    (source,) = open_source(DataSpec(path=f"{file}:one", **options))
    return source


def refused(folder: Path, entry: dict[str, Any], *found: Any) -> str:
    rows(folder, "rows.jsonl", *found)
    file = registry(folder, one=entry)
    with pytest.raises(Problem) as caught:
        open_source(DataSpec(path=f"{file}:one"))
    return str(caught.value)


def spec(folder: Path, entry: dict[str, Any], **options: Any) -> DataSpec:
    file = registry(folder, one=entry)
    return read_registry(DataSpec(path=f"{file}:one", **options), file, ["one"])[0].spec


def test_alpaca_is_the_default(tmp_path: Path) -> None:
    (record,) = opened(tmp_path, {}, ALPACA).records()
    assert isinstance(record, Chat)
    assert [message.content for message in record.messages] == ["s", "x", "y", "q\ni", "a"]


def test_columns_of_alpaca(tmp_path: Path) -> None:
    columns = {"prompt": "P", "query": "Q", "response": "R", "system": "S", "history": "H", "tools": "T"}
    row = {"P": "q", "Q": "i", "R": "a", "S": "s", "H": [["x", "y"]], "T": '[{"name": "f"}]', "instruction": ""}
    (record,) = opened(tmp_path, {"columns": columns}, row).records()
    assert isinstance(record, Chat)
    assert [message.content for message in record.messages] == ["s", "x", "y", "q\ni", "a"]
    assert len(record.tools) == 1


def test_columns_and_tags_of_sharegpt(tmp_path: Path) -> None:
    tags = {"role_tag": "r", "content_tag": "c", "user_tag": "U", "assistant_tag": "A", "observation_tag": "O"}
    tags |= {"function_tag": "F", "system_tag": "S"}
    call = '{"name": "f", "arguments": {}}'
    turns = [("S", "s"), ("U", "q"), ("F", call), ("O", "o"), ("A", "a")]
    row = {"turns": [{"r": role, "c": content} for role, content in turns], "fns": '[{"name": "f"}]'}
    entry = {"formatting": "sharegpt", "columns": {"messages": "turns", "tools": "fns"}, "tags": tags}
    (record,) = opened(tmp_path, entry, row).records()
    assert isinstance(record, Chat)
    assert [message.role for message in record.messages] == ["system", "user", "assistant", "tool", "assistant"]


def test_ranking_and_ratings(tmp_path: Path) -> None:
    pair = {"instruction": "q", "chosen": "a", "rejected": "b"}
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    (record,) = opened(tmp_path, {"ranking": True, "columns": columns}, pair).records()
    assert isinstance(record, Preference)
    turns = {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}}
    turns["rejected"] = {"from": "gpt", "value": "b"}
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    entry = {"ranking": True, "formatting": "sharegpt", "columns": columns}
    (record,) = opened(tmp_path, entry, turns).records()
    assert isinstance(record, Preference)
    columns = {"prompt": "instruction", "response": "output", "kto_tag": "ok"}
    (record,) = opened(tmp_path, {"columns": columns}, {"instruction": "q", "output": "a", "ok": False}).records()
    assert isinstance(record, Rated)
    assert record.good is False


def test_text_is_what_has_a_prompt_only(tmp_path: Path) -> None:
    (record,) = opened(tmp_path, {"columns": {"prompt": "body"}}, {"body": "t"}).records()
    assert isinstance(record, Text)
    assert record.text == "t"
    (tmp_path / "wiki.txt").write_text("once")
    file = registry(tmp_path, wiki={"file_name": "wiki.txt", "columns": {"prompt": "text"}})
    (source,) = open_source(DataSpec(path=f"{file}:wiki"))
    assert [type(record) for record in source.records()] == [Text]


def test_a_file_name_may_be_a_folder_and_paths_start_from_the_base(tmp_path: Path) -> None:
    (tmp_path / "sub" / "many").mkdir(parents=True)
    for name in ("a.jsonl", "b.jsonl"):
        rows(tmp_path / "sub" / "many", name, ALPACA)
    registry(tmp_path / "sub", one={"file_name": "many"})
    (source,) = open_source(DataSpec(path="sub/dataset_info.json:one"), tmp_path)
    assert len(list(source.records())) == 2


def test_num_samples_limits(tmp_path: Path) -> None:
    assert len(list(opened(tmp_path, {"num_samples": 2}, *[ALPACA] * 5).records())) == 2
    assert len(list(opened(tmp_path, {"num_samples": 2}, *[ALPACA] * 5, limit=3).records())) == 3


def test_hubs_in_the_order_of_llama_factory(tmp_path: Path) -> None:
    every = {"hf_hub_url": "a/b", "ms_hub_url": "c/d", "script_url": "x.py", "file_name": "rows.jsonl"}
    found = spec(tmp_path, {**every, "subset": "en", "split": "test", "folder": "python"})
    assert (found.path, found.subset, found.split) == ("a/b:python", "en", "test")
    assert spec(tmp_path, {"ms_hub_url": "c/d"}).path == "modelscope:c/d"
    assert spec(tmp_path, {"hf_hub_url": "a/b", "split": "x"}, split="y", weight=3.0).split == "y"


def test_several_names_are_several_sources(tmp_path: Path) -> None:
    rows(tmp_path, "rows.jsonl", ALPACA)
    file = registry(tmp_path, a={"file_name": "rows.jsonl"}, b={"file_name": "rows.jsonl"})
    assert len(open_source(DataSpec(path=f"{file}:a, b"))) == 2


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"script_url": "load.py"}, "never run"),
        ({"om_hub_url": "a/b"}, "OpenMind"),
        ({"cloud_file_name": "s3://x"}, "Copy it"),
        ({}, "names no source"),
        ({"file_name": "rows.jsonl", "columns": {"images": "i"}}, "text only"),
        ({"file_name": "rows.jsonl", "columns": {"videos": "i"}}, "text only"),
        ({"file_name": "rows.jsonl", "columns": {"audios": "i"}}, "text only"),
        ({"file_name": "rows.jsonl", "formatting": "chatml"}, "Known: alpaca, sharegpt"),
        ({"file_name": "rows.jsonl", "rankng": True}, "Did you mean 'ranking'?"),
        ({"file_name": "rows.jsonl", "columns": {"respnse": "x"}}, "Did you mean 'response'?"),
        ({"file_name": "rows.jsonl", "tags": {"user_tagg": "x"}}, "Did you mean 'user_tag'?"),
        ({"file_name": "rows.jsonl", "ranking": "yes"}, "must be true or false"),
        ({"file_name": "rows.jsonl", "num_samples": -1}, "must be a number above 0"),
        ({"file_name": ["rows.jsonl"]}, "must be a string"),
        ({"file_name": "rows.jsonl", "columns": ["prompt"]}, "must be an object"),
        ({"file_name": "rows.jsonl", "split": "test"}, "is for data sets on a hub"),
        ({"file_name": "rows.jsonl", "folder": "x"}, "is for data sets on a hub"),
        ({"file_name": "../rows.jsonl"}, "leads outside"),
        ({"file_name": "a/../../rows.jsonl"}, "leads outside"),
        ({"file_name": "/etc/passwd"}, "leads outside"),
        ({"file_name": "..\\rows.jsonl"}, "leads outside"),
        ({"file_name": "none.jsonl"}, "no such file"),
    ],
)
def test_what_cannot_be_honoured_is_refused(tmp_path: Path, entry: dict[str, Any], said: str) -> None:
    assert said in refused(tmp_path, entry, ALPACA)


@pytest.mark.skipif(os.name == "nt", reason="links and pipes of Unix")
def test_links_out_of_the_folder_and_pipes_are_refused(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    rows(tmp_path, "secret.jsonl", ALPACA)
    (inside / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (inside / "up").symlink_to(tmp_path)
    os.mkfifo(inside / "pipe.jsonl")
    assert "leads outside" in refused(inside, {"file_name": "link.jsonl"})
    assert "leads outside" in refused(inside, {"file_name": "up/secret.jsonl"})
    assert "no regular file" in refused(inside, {"file_name": "pipe.jsonl"})


def test_the_trap_of_naming_one_column_is_refused_when_rows_hold_others(tmp_path: Path) -> None:
    columns = {"prompt": "instruction", "response": "output"}
    text = refused(tmp_path, {"file_name": "rows.jsonl", "columns": columns}, ALPACA)
    assert '"query": "input"' in text
    assert '"history": "history"' in text
    assert '"system": "system"' in text
    text = refused(tmp_path, {"file_name": "rows.jsonl", "columns": {"prompt": "instruction"}}, ALPACA)
    assert '"response": "output"' in text


def test_the_trap_is_no_trap_when_rows_hold_nothing_else(tmp_path: Path) -> None:
    row = {"instruction": "q", "input": "", "output": "a", "history": []}
    entry = {"columns": {"prompt": "instruction", "response": "output"}}
    assert len(list(opened(tmp_path, entry, row).records())) == 1
    assert len(
        list(opened(tmp_path, {"columns": {"prompt": "input", "response": "output"}}, row | {"input": "q"}).records())
    )


def test_unknown_names_and_no_name(tmp_path: Path) -> None:
    file = registry(tmp_path, alpha={"file_name": "x.json"}, beta={"file_name": "y.json"})
    with pytest.raises(Problem, match="Did you mean 'alpha'"):
        open_source(DataSpec(path=f"{file}:alpah"))
    with pytest.raises(Problem, match="alpha, beta"):
        open_source(DataSpec(path=str(file)))
    assert names_in(file) == ["alpha", "beta"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe\x00", b'{"a": 1}', b'{"a": {}, "a": 1}', b"[" * 5000])
def test_a_broken_registry_is_a_problem(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "dataset_info.json"
    file.write_bytes(content)
    with pytest.raises(Problem):
        open_source(DataSpec(path=f"{file}:a"))


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("data/dataset_info.json:a", ("data/dataset_info.json", ["a"])),
        ("dataset_info.json:a,b", ("dataset_info.json", ["a", "b"])),
        ("dataset_info.json", ("dataset_info.json", [])),
        ("my_dataset_info.json:a", None),
        ("data/rows.jsonl", None),
        ("org/name:folder", None),
    ],
)
def test_addresses(path: str, address: tuple[str, list[str]] | None) -> None:
    assert split_address(path) == address


def test_a_real_registry_is_understood_whole(shared_data: Path) -> None:
    file = shared_data / "dataset_info.json"
    found = names_in(file)
    assert len(found) == 104
    entries = json.loads(file.read_text())
    for name in found:
        pictures = set(entries[name].get("columns", {})) & {"images", "videos", "audios"}
        try:
            (entry,) = read_registry(DataSpec(path=f"{file}:{name}"), file, [name])
        except Problem as problem:
            assert pictures, problem
            assert "text only" in str(problem)
        else:
            assert not pictures
            assert entry.spec.path and entry.spec.format
