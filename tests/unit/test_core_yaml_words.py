"""Words that YAML takes for truth values."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.core.problem import Problem
from tunesmith.core.run import read_run


@pytest.mark.parametrize("word", ["on", "off", "auto"])
def test_on_and_off_are_words_in_a_run_file_and_on_the_command_line(tmp_path: Path, word: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"model: a\ndata: b\ntrain: {{checkpoint_activations: {word}}}\n")
    assert read_run(file).train.checkpoint_activations == word
    file.write_text("model: a\ndata: b\n")
    assert read_run(file, (f"train.checkpoint_activations={word}",)).train.checkpoint_activations == word


@pytest.mark.parametrize("written", ["a.jsonl", "[a.jsonl]", "{path: a.jsonl}", "[{path: a.jsonl}]"])
def test_sources_are_one_or_several_and_a_path_is_enough(tmp_path: Path, written: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"model: a\ndata: {written}\nvalidation: {{data: {written}}}\n")
    run = read_run(file)
    assert [spec.path for spec in run.data] == [spec.path for spec in run.validation.data] == ["a.jsonl"]
    changed = read_run(file, ("data.0.limit=3", "validation.data.0.limit=4"))
    assert [(spec.path, spec.limit) for spec in changed.data] == [("a.jsonl", 3)]
    assert [(spec.path, spec.limit) for spec in changed.validation.data] == [("a.jsonl", 4)]
    file.write_text("model: a\ndata: [a.jsonl, {path: b.jsonl, limit: 3}]\n")
    assert [(spec.path, spec.limit) for spec in read_run(file).data] == [("a.jsonl", None), ("b.jsonl", 3)]


def test_a_source_that_is_neither_path_nor_options_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: a\ndata: [a.jsonl, 3]\n")
    with pytest.raises(Problem, match=r"data\[1\]|data\.1"):
        read_run(file)
