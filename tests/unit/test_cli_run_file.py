"""The commented run file: it reads back as the same run, and so it does with every option switched on."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tunesmith.cli.manual import Manual
from tunesmith.cli.run_file import write_out
from tunesmith.core.run import parse_run
from tunesmith.core.yaml_file import parse_yaml

RUNS: list[dict[str, Any]] = [
    {"model": {"path": "builtin:seedling"}, "data": [{"path": "rows.jsonl"}]},
    {
        "model": {"path": "Org/Name"},
        "data": [{"path": "a b.jsonl"}, {"path": "c.csv", "weight": 2.0}],
        "objective": "dpo",
    },
    {
        "model": {"path": "m", "device": "cpu"},
        "data": [{"path": "- odd: #name.jsonl", "prompt": 'Is it "good"?\n{text}', "columns": {"text": "yes"}}],
        "objective": {"dpo": {"beta": 0.2}},
        "method": {"freeze": {"last": 1}},
        "train": {"epochs": 3, "clip_norm": None},
        "output": "on",
    },
]


@pytest.mark.parametrize("value", RUNS)
def test_it_reads_back_as_the_same_run(value: dict[str, Any]) -> None:
    text = write_out(value, "run.yaml")
    assert parse_run(parse_yaml(text, "run.yaml")[0], "run.yaml") == parse_run(value, "value")


@pytest.mark.parametrize("value", RUNS)
def test_every_option_can_be_switched_on(value: dict[str, Any]) -> None:
    """What is commented out is said to have that value already, so that taking all # away changes nothing."""
    text = re.sub(r"^(\s*)#(\w+:)", r"\1\2", write_out(value, "run.yaml"), flags=re.MULTILINE)
    assert parse_run(parse_yaml(text, "run.yaml")[0], "run.yaml") == parse_run(value, "value")


def test_every_option_has_its_help_above_it() -> None:
    text = " ".join(re.sub(r"^\s*# ?", "", write_out(RUNS[0], "run.yaml"), flags=re.MULTILINE).split())
    manual = Manual.shipped()
    for option in (*manual.fields.values(), *(option for section in manual.sections.values() for option in section)):
        assert option.help and option.help in text


def test_lines_stay_short() -> None:
    assert max(map(len, write_out(RUNS[0], "run.yaml").splitlines())) <= 120


def test_the_manual_knows_sections_and_families() -> None:
    manual = Manual.shipped()
    assert set(manual.sections) == {"model", "data", "validation", "train"}
    path = next(option for option in manual.sections["data"] if option.name == "path")
    assert path.required
    assert path.type == "str"
    assert manual.member("method", "lora") is not None
    assert manual.member("method", "nonsense") is None
