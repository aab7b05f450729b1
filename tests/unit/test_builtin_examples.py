"""The example data: what the README promises holds, and the files are what their script makes."""

from __future__ import annotations

import importlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tunesmith import builtin
from tunesmith.core.plugins import build, names

FORMATS = {
    "identity.jsonl": "messages",
    "identity_test.jsonl": "messages",
    "preferences.jsonl": "preference_messages",
    "reviews.jsonl": "labelled",
    "reviews_test.jsonl": "labelled",
}


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in builtin.example(name).read_text(encoding="utf-8").splitlines()]


def is_chinese(text: str) -> bool:
    return re.search(r"[\u4e00-\u9fff]", text) is not None


def sentences(text: str) -> set[str]:
    return {part.strip() for part in re.split(r"(?<=[.!?。！？])", text) if part.strip()}


def test_every_file_is_known_and_described() -> None:
    readme = (builtin.example("reviews").parent / "README.md").read_text(encoding="utf-8")
    assert set(builtin.examples()) == set(FORMATS)
    for name in FORMATS:
        assert f"| `{name}` | {len(rows(name))} |" in readme


@pytest.mark.parametrize(("name", "format_name"), FORMATS.items())
def test_one_format_reads_every_row(name: str, format_name: str) -> None:
    found = rows(name)
    for row in found:
        assert [member for member in names("format") if build("format", member).matches(row)] == [format_name]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", FORMATS)
def test_no_row_stands_twice_and_both_languages_are_there(name: str) -> None:
    lines = [json.dumps(row, ensure_ascii=False, sort_keys=True) for row in rows(name)]
    assert len(set(lines)) == len(lines)
    chinese = sum(map(is_chinese, lines))
    assert 0.4 < chinese / len(lines) < 0.6


@pytest.mark.parametrize("name", ["reviews", "reviews_test"])
def test_labels_are_balanced(name: str) -> None:
    count = Counter(row["label"] for row in rows(name))
    assert set(count) == {"positive", "negative"}
    assert count["positive"] == count["negative"]


def test_every_test_review_says_something_new() -> None:
    trained = {sentence for row in rows("reviews") for sentence in sentences(row["text"])}
    texts = {row["text"] for row in rows("reviews")}
    for row in rows("reviews_test"):
        assert row["text"] not in texts
        assert sentences(row["text"]) - trained


def test_test_questions_are_not_trained_on() -> None:
    asked = [{row["messages"][0]["content"] for row in rows(name)} for name in ("identity", "identity_test")]
    assert not asked[0] & asked[1]


def test_the_name_is_said_in_its_language() -> None:
    answers = [row["messages"][1]["content"] for row in rows("identity")]
    assert all("小苗" not in answer for answer in answers if not is_chinese(answer))
    assert sum("Sprout" in answer or "小苗" in answer for answer in answers) > len(answers) * 0.75


def test_the_better_answer_differs() -> None:
    for row in rows("preferences"):
        assert row["chosen"][0]["content"] != row["rejected"][0]["content"]


def test_the_script_makes_these_files(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(repository))
    importlib.import_module("seedling.examples").main(tmp_path)
    for name in FORMATS:
        assert (tmp_path / name).read_bytes() == builtin.example(name).read_bytes()
