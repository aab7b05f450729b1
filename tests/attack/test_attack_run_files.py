"""Attacks on run files: every fault of one is told at once, in words, with its line; nothing hangs or runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from attacks import command, forked, one_paragraph

from tunesmith.core.problem import Problem, Problems
from tunesmith.core.run import Run, read_run

GOOD = "model: base\ndata: rows.jsonl\n"

FAULTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "unknown section": (GOOD + "trian: {epochs: 3}\n", (":3", "trian", "'train'")),
    "unknown option": (GOOD + "train:\n  epoch: 3\n", (":4", "train.epoch", "'epochs'")),
    "wrong type": (GOOD + "train:\n  epochs: many\n", (":4", "train.epochs", "many")),
    "negative number": (GOOD + "train: {epochs: -1}\n", (":3", "train.epochs", "-1")),
    "not a number": (GOOD + "train: {epochs: .nan}\n", (":3", "train.epochs", "nan")),
    "a list for a mapping": (GOOD + "train: [1, 2]\n", (":3", "train")),
    "null data": ("model: base\ndata: null\n", (":2", "data")),
    "empty data": ("model: base\ndata: []\n", (":2", "data")),
    "no model": ("data: rows.jsonl\n", ("model", "required")),
    "unknown method": (GOOD + "method: lorra\n", (":3", "lorra", "'lora'")),
    "unknown option of a method": (GOOD + "method:\n  lora:\n    rang: 3\n", (":5", "rang", "'rank'")),
    "two methods": (GOOD + "method: {lora: {}, full: {}}\n", (":3", "method")),
    "method that is a number": (GOOD + "method: 7\n", (":3", "method", "7")),
    "method with a path": (GOOD + "method: ../../evil\n", (":3", "evil")),
    "a tag that runs code": (GOOD + "output: !!python/object/apply:os.system ['echo ran']\n", (":3", "tag")),
    "a local tag": (GOOD + "output: !secret x\n", (":3", "tag")),
    "an alias": ("model: &m base\ndata: *m\n", (":1", "anchor")),
    "a merge key": (GOOD + "train:\n  <<: {epochs: 2}\n", (":4", "<<")),
    "duplicate key": (GOOD + "train: {seed: 1, seed: 2}\n", (":3", "seed", "twice")),
    "duplicate section": (GOOD + "data: other.jsonl\n", (":3", "data", "twice")),
    "two documents": (GOOD + "---\nmodel: other\n", ("YAML",)),
    "a tab": (GOOD + "train:\n\tepochs: 3\n", (":4", "YAML")),
    "unclosed bracket": (GOOD + "train: {epochs: 3\n", ("YAML",)),
    "a bare string": ("hello", ("hello",)),
    "a number": ("42", ("42",)),
    "a list": ("- model\n- data\n", ("options by name",)),
    "nothing": ("", ("None",)),
    "a comment": ("# model: base\n", ("None",)),
    "a date that is none": (GOOD + "output: 2025-13-45\n", (":3",)),
    "a number of 10,000 digits": (GOOD + f"train: {{seed: {'9' * 10_000}}}\n", (":3",)),
    "a sexagesimal number": (GOOD + "train: {seed: 1:99}\n", (":3", "train.seed")),
    "a key that is a list": (GOOD + "? [a, b]\n: c\n", (":3",)),
    "a key that is null": (GOOD + "~: c\n", (":3",)),
    "the value sign": (GOOD + "train: {seed: =}\n", (":3",)),
    "deep nesting": (GOOD + "train: " + "[" * 2000 + "]" * 2000 + "\n", ("YAML",)),
    "deep mappings": (GOOD + "train: " + "{a: " * 2000 + "1" + "}" * 2000 + "\n", ("YAML",)),
    "a control character": (GOOD + "output: 'a\x07b'\n", ("YAML",)),
}


def _fault(file: Path) -> Problem:
    with pytest.raises(Problem) as caught:
        read_run(file)
    one_paragraph(str(caught.value))
    return caught.value


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_run_file_is_refused_with_its_line(name: str, tmp_path: Path) -> None:
    text, told = FAULTS[name]
    file = tmp_path / "run.yaml"
    file.write_text(text)
    message = str(_fault(file))
    assert [part for part in (str(file), *told) if part not in message] == [], message


def test_the_good_file_is_read(tmp_path: Path) -> None:
    """The faults above are the faults of what was added, not of what they stand on."""
    file = tmp_path / "run.yaml"
    file.write_text(GOOD)
    assert isinstance(read_run(file), Run)


BYTES: dict[str, bytes] = {
    "binary": bytes(range(256)) * 8,
    "utf-16": GOOD.encode("utf-16"),
    "latin-1": (GOOD + "output: caf\xe9\n").encode("latin-1"),
    "NUL": GOOD.encode() + b"\0" * 16,
    "5 MB": (GOOD + "# " + "x" * 5_000_000).encode(),
    "5 MB of keys": b"".join(b"k%d: 1\n" % number for number in range(500_000)),
    "nesting without end": b"[" * 900_000,
    "billion laughs": b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(
        b"%c: &%c [%s]\n" % (name, name, b",".join([b"*%c" % (name - 1)] * 9)) for name in range(ord("b"), ord("i"))
    ),
}


@pytest.mark.parametrize("name", BYTES)
def test_a_file_that_is_no_text_or_too_much_of_it(name: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(BYTES[name])
    assert str(file) in str(_fault(file))


def test_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path, Path("/dev/zero")):
        assert str(path) in str(_fault(path))


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    pipe = tmp_path / "run.yaml"
    os.mkfifo(pipe)
    assert "file" in str(_fault(pipe))


def test_all_faults_come_at_once_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "model: {path: base, devise: cpu}\n"
        "data:\n"
        "  - {path: rows.jsonl, weight: -1}\n"
        "  - {format: alpaca}\n"
        "method:\n"
        "  lora:\n"
        "    rank: 0\n"
        "    dropout: 2\n"
        "train:\n"
        "  epochs: none\n"
        "  seeds: 4\n"
        "whatever: 1\n"
    )
    fault = _fault(file)
    assert isinstance(fault, Problems)
    text = str(fault)
    wanted = {1: "devise", 3: "weight", 4: "path", 7: "rank", 8: "dropout", 10: "epochs", 11: "seeds", 12: "whatever"}
    told = {line: next((row for row in text.splitlines() if f":{line}:" in row), "") for line in wanted}
    assert {line: word in told[line] for line, word in wanted.items()} == dict.fromkeys(wanted, True), text


CHANGES = ("train.epochs", "=3", "train.epochs.x=3", "data.7.path=x", "data.x=1", "train=[", "a.b.c=!!python/none x")


@pytest.mark.parametrize("change", CHANGES)
def test_a_faulty_change_is_refused(change: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(GOOD + "train: {epochs: 2}\n")
    with pytest.raises(Problem) as caught:
        read_run(file, (change,))
    one_paragraph(str(caught.value))


def test_the_command_says_it_in_a_paragraph_and_exits_2(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    for text, _ in (FAULTS["unknown option"], FAULTS["an alias"], FAULTS["nothing"]):
        file.write_text(text)
        for verb in ("train", "plan"):
            end = forked(command(verb, file), tmp_path / "log")
            assert end.status == 2, end.text
            one_paragraph(end.text)
