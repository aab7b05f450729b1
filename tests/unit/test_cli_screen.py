"""What the command line prints: texts made harmless, figures for people, progress without a terminal."""

from __future__ import annotations

import re

import pytest

from tunesmith.cli import screen
from tunesmith.cli.progress import Counting, Display
from tunesmith.core.events import Event
from tunesmith.core.problem import Problem


def step(number: int, loss: float = 2.0) -> Event:
    return Event(
        "step", number, {"loss": loss, "tokens": 100, "seconds": 0.5, "lr": 1e-3, "total_tokens": number * 100}
    )


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb", "a␛[2Jb"),
        ("a\x07\x00", "a␇␀"),
        ("one\ntwo\tthree\r\nfour", "one\ntwo\tthree\nfour"),
        ("a\x9b1mb\x7f", "a<9b>1mb␡"),
        ("汉字 é", "汉字 é"),
    ],
)
def test_clean_leaves_nothing_that_steers_a_terminal(text: str, shown: str) -> None:
    assert screen.clean(text) == shown


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_durations(seconds: float, told: str) -> None:
    assert screen.duration(seconds) == told


@pytest.mark.parametrize(
    ("value", "told"), [(2.34567, "2.346"), (0.01234, "0.0123"), (0.0000123, "1.2e-05"), (0.0, "0.0000")]
)
def test_numbers_keep_the_digits_that_mean_something(value: float, told: str) -> None:
    assert screen.number(value) == told


def test_commands_can_be_pasted() -> None:
    assert screen.command("chat", "runs/my run") == "tunesmith chat 'runs/my run'"


def test_faults_go_to_standard_error_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    screen.fault(Problem("run.yaml:3: train.x", "there is no such option \x1b[31m" + "y" * 300, "Look again"))
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == f"run.yaml:3: train.x: there is no such option ␛[31m{'y' * 300}. Look again.\n"


def test_piped_training_says_about_ten_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Display() as display:
        display.hear(Event("start", 0, {"total_steps": 200, "tokens_per_step": 100, "trainable": 5, "all": 1000}))
        for number in range(1, 201):
            display.hear(step(number))
    first, *told = lines(capsys)
    assert first == "  200 steps, about 100 tokens a step, 5 of 1,000 weights learn"
    assert [int(line.split()[1]) for line in told] == list(range(20, 201, 20))
    assert told[0] == "  step  20 of 200  loss 2.000  200 tokens/s  1 min 30 s left"


def test_what_learns_by_reward_is_told_by_it(capsys: pytest.CaptureFixture[str]) -> None:
    with Display() as display:
        display.hear(Event("start", 0, {"total_steps": 1, "tokens_per_step": 100}))
        drawn = step(1)
        display.hear(Event("step", 1, {**drawn.values, "reward": 0.25}))
        display.hear(Event("validate", 1, {"loss": -1.5, "reward": 1.5, "length": 8.0, "best": -1.5, "best_step": 1}))
    told = capsys.readouterr().out
    assert "reward 0.250" in told
    assert "loss" not in told
    assert "  step 1: validation reward 1.500  length 8.000  (highest so far)\n" in told


def test_piped_training_has_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    with Display() as display:
        for event in (
            Event("note", 0, {"text": "device cpu: no GPU is here"}),
            Event("reading", 0, {"done": 10_000}),
            Event("data", 0, {"lines": ["rows.jsonl: 3 rows in\x1b"]}),
            Event("start", 4, {"total_steps": 5}),
            step(5),
            Event("validate", 5, {"loss": 1.5, "best": 1.5, "best_step": 5, "accuracy": 0.5}),
            Event("checkpoint", 5, {"path": "runs/x/checkpoints/step-00000005"}),
            Event("nonfinite", 5, {"what": "the loss is nan", "rows": "a.jsonl:3", "then": "skip"}),
            Event("of another version", 5, {}),
        ):
            display.hear(event)
    told = capsys.readouterr().out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", told)
    assert "  from step 4 of 5\n" in told
    assert "  step 5: validation loss 1.500  accuracy 0.500  (lowest so far)\n" in told
    assert "  step 5: checkpoint step-00000005\n" in told
    assert "  step 6: the loss is nan; the step is skipped. Its rows: a.jsonl:3\n" in told


def test_reading_is_told_at_doublings(capsys: pytest.CaptureFixture[str]) -> None:
    with Display() as display:
        for done in range(0, 100_001, 5_000):
            display.hear(Event("reading", 0, {"done": done}))
    assert lines(capsys) == [f"  {done:,} rows read" for done in (10_000, 20_000, 40_000, 80_000)]


def test_counting_says_a_line_when_a_part_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with Counting() as counting:
        for done in range(1, 4):
            counting.hear("base: labels", done, 3)
        counting.hear("base: labels", 3, 3)
        counting.hear("reading rows", 7, 0)
    assert lines(capsys) == ["  base: labels: 3 of 3"]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with Display() as display:
        display.hear(Event("start", 0, {"total_steps": 2}))
        display.hear(step(1))
        display.hear(step(2))
    told = capsys.readouterr().out
    assert "\x1b[" in told
    assert "2/2  loss 2.000  200 tokens/s  0 s left" in told
