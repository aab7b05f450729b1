"""The tutorial is run from its first command to its last, on a tiny model in place of the embedded base."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from docpages import REPOSITORY, refresh

from tunesmith import builtin
from tunesmith.cli import __main__ as entry
from tunesmith.cli.progress import Display
from tunesmith.core.events import Event, read_events
from tunesmith.core.run import parse_run, read_run

Call = Callable[[str], tuple[int, str]]
ROWS = 48
"""Rows of each example that are left, so that the tutorial takes seconds."""
STOP_AFTER = 2


@pytest.fixture
def small_builtin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What ships, smaller: a random Llama with the shipped tokenizer, and the first rows of the examples."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    root = tmp_path / "builtin"
    shutil.copytree(
        builtin.path("seedling"), root / "seedling", ignore=shutil.ignore_patterns("*.safetensors", "config.json")
    )
    (root / "examples").mkdir()
    for name in builtin.examples():
        lines = builtin.example(name).read_text("utf-8").splitlines(keepends=True)
        (root / "examples" / name).write_text("".join(lines[:ROWS]), "utf-8")
    entries = len(json.loads((root / "seedling" / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]) + 8
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=entries,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(root / "seedling")
    shutil.copytree(root / "seedling", root / "seedling-chat")
    monkeypatch.setattr(builtin, "_ROOT", root)
    return root


@pytest.fixture
def work(tmp_path: Path, small_builtin: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the reader of the tutorial is in, after its first command."""
    folder = tmp_path / "work"
    folder.mkdir()
    shutil.copytree(small_builtin / "examples", folder / "examples")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "100")
    return folder


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command as a shell would, in this process; its status and all that it printed."""

    def run(command: str) -> tuple[int, str]:
        program, *words = shlex.split(command.partition(" 2>")[0])
        if program == "python":
            runpy.run_path(words[0], run_name="__main__")
            return 0, capsys.readouterr().out
        assert program == "tunesmith"
        monkeypatch.setattr(sys, "argv", ["tunesmith", *words])
        with pytest.raises(SystemExit) as end:
            sys.exit(entry.main())
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out + told.err

    return run


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Press Ctrl-C when the next run has done a few steps."""
    hear = Display.hear
    pressed: list[bool] = []

    def listening(self: Display, event: Event) -> None:
        hear(self, event)
        if event.kind == "step" and event.step == STOP_AFTER and not pressed:
            pressed.append(True)
            signal.raise_signal(signal.SIGINT)

    def arm() -> None:
        monkeypatch.setattr(Display, "hear", listening)

    return arm


def test_the_tutorial_runs(work: Path, call: Call, ctrl_c: Callable[[], None]) -> None:
    told: dict[str, str] = {}
    for step in refresh.steps(refresh.TUTORIALS[0].read_text("utf-8")):
        if step.file:
            (work / step.file).write_text(step.content, "utf-8")
            continue
        if step.stop_after:
            ctrl_c()
        status, text = call(step.command)
        assert status == step.status, f"{step.command}\n{text}"
        told[step.command.partition(" 2>")[0].partition(" --")[0]] = text
    assert "3 used + 3 rejected" in told["tunesmith data check bad.jsonl"]
    assert "was stopped" in told["tunesmith train run.yaml"]
    assert f"going on from step {STOP_AFTER}" in told["tunesmith resume runs/identity"]
    assert "perplexity" in told["tunesmith evaluate runs/identity"]
    assert "n-gram" in told["tunesmith evaluate runs/reviews"]
    assert "logits agree" in told["tunesmith fold runs/identity"]
    answers = re.fullmatch(r"adapter (.*)\nfolded (.*)\n", told["python use.py"], re.DOTALL)
    assert answers is not None and answers[1] == answers[2]
    assert "wrong.yaml:5" in told["tunesmith plan wrong.yaml"]
    assert (work / "runs" / "identity" / "plots" / "loss.png").is_file()


def test_the_short_run_file_is_the_one_that_new_writes(work: Path, call: Call) -> None:
    page = refresh.TUTORIALS[0].read_text("utf-8")
    new = next(step.command for step in refresh.steps(page) if step.command.startswith("tunesmith new"))
    assert call(new)[0] == 0
    found = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert found is not None
    assert read_run(Path("run.yaml")).plain() == parse_run(yaml.safe_load(found[1]), "page").plain()


def test_the_objective_of_the_design_page_learns(
    tmp_path: Path, small_builtin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that the design page shows whole is read as a plug-in and trains."""
    from tunesmith.train.verb import train

    found = re.search(r"```python\n(.*?)```", (REPOSITORY / "docs" / "design.md").read_text("utf-8"), re.DOTALL)
    assert found is not None
    (tmp_path / "ranking.py").write_text(found[1], "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    kind: Any = importlib.import_module("ranking").Ranking
    assert kind.name() == "ranking"
    value = {
        "model": "builtin:seedling",
        "data": {"path": str(builtin.example("preferences")), "limit": 8},
        "objective": kind(),
        "validation": {"fraction": 0},
        "train": {"steps": 6, "rows_per_step": 8, "schedule": "constant", "listeners": []},
        "optimizer": {"adamw": {"lr": 0.01}},
        "output": str(tmp_path / "run"),
    }
    result = train(parse_run(value, "test"))
    losses = [event.values["loss"] for event in read_events(result.folder.events) if event.kind == "step"]
    assert losses[-1] < losses[0]


def test_a_session_shows_what_a_command_printed_and_minds_its_status(tmp_path: Path) -> None:
    session = refresh.Session(tmp_path)
    assert session.do(refresh.Step(file="a.txt", content="hello\n")) == ""
    assert session.do(refresh.Step("cat a.txt")) == "hello\n"
    assert session.do(refresh.Step("pwd; exit 2", status=2)).strip() == str(session.folder)
    with pytest.raises(SystemExit, match="exit status 3"):
        session.do(refresh.Step("exit 3"))


def test_long_stretches_of_progress_are_shortened() -> None:
    lines = ["start", *(f"  step {n} of 9" for n in range(9)), "end"]
    assert refresh.shorter(lines) == [
        "start",
        "  step 0 of 9",
        "  step 1 of 9",
        "  …",
        "  step 7 of 9",
        "  step 8 of 9",
        "end",
    ]


def test_long_tables_are_shortened() -> None:
    table = ["╭─╮", "│ question │", *(line for n in range(5) for line in ("├─┤", f"│ {n} │")), "╰─╯", "end"]
    kept = ["╭─╮", "│ question │", *(line for n in range(3) for line in ("├─┤", f"│ {n} │")), "  …", "╰─╯", "end"]
    assert refresh.fewer_rows(table) == kept


def test_what_no_reader_should_see_stops_a_session(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="should not see"):
        refresh.Session(tmp_path).do(refresh.Step(f"echo {sys.prefix}/lib: UserWarning: x"))


def test_notes_of_a_command_are_read() -> None:
    page = "<!-- run, Ctrl-C after step 20: tunesmith train run.yaml -->\n<!-- /run -->\n"
    page += '<!-- run, status 1: tunesmith chat x --prompt "a: b" -->\n<!-- /run -->\n'
    first, second = refresh.steps(page)
    assert (first.command, first.status, first.stop_after) == ("tunesmith train run.yaml", 0, 20)
    assert (second.command, second.status) == ('tunesmith chat x --prompt "a: b"', 1)
