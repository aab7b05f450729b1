"""What a run of preferences says of its figures when it ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from tunesmith.core.plugins import build
from tunesmith.objectives import Objective


def signs(name: str, figure: Callable[[int], dict[str, float]], steps: int = 20) -> tuple[str, ...]:
    """What an objective says of steps with these figures."""
    objective = build("objective", name)
    assert isinstance(objective, Objective)
    return objective.signs([figure(number) for number in range(steps)])


def rising(better: str, slope: float) -> Callable[[int], dict[str, float]]:
    """Steps whose lead grows by 0.1 each, and the reward of what is better by `slope`."""
    return lambda number: {"accuracy": 0.5, "lead": 0.1 * number, better: slope * number}


@pytest.mark.parametrize(("name", "better"), [("dpo", "chosen"), ("kto", "good"), ("bco", "good")])
def test_better_answers_that_become_unlikelier_are_told(name: str, better: str) -> None:
    (said,) = signs(name, rising(better, -0.05))
    assert f"the {better} answers became less likely, too: their reward went from 0 to -0.85" in said
    assert "lead by 1.7" in said
    assert not signs(name, rising(better, 0.05))
    assert not signs(name, rising(better, -0.005))
    assert not signs(name, rising(better, -0.05), steps=7)
    assert not signs(name, lambda number: {**rising(better, -0.05)(number), "lead": -0.1})


@pytest.mark.parametrize("name", ["dpo", "orpo", "simpo", "cpo", "reward"])
def test_pairs_that_are_told_apart_from_the_start_are_told(name: str) -> None:
    def figures(late: int) -> Callable[[int], dict[str, float]]:
        return lambda number: {"accuracy": float(number >= late), "lead": 1.0, "chosen": 1.0}

    (said,) = signs(name, figures(1))
    assert "told apart almost from the start (accuracy 1.00)" in said
    assert not signs(name, figures(4))


def test_steps_without_a_kind_are_passed_over() -> None:
    assert signs("kto", lambda number: rising("good", -0.05)(number) if number % 2 else {"accuracy": 1.0})


def test_a_run_says_it_when_it_ends(tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    result = tiny.trained(base, tmp_path, "dpo", method="lora", optimizer={"adamw": {"lr": 0.05}}, train={"epochs": 4})
    told: list[Any] = [event.values["text"] for event in tiny.events(result, "note")]
    assert any("told apart almost from the start" in text for text in told)
