"""A run that draws its own answers, stopped between two updates of one rollout or killed, ends as if it had not been:
the rollout is kept in the checkpoint, or drawn again from the same numbers.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from tunesmith.core.events import Event
from tunesmith.core.plugins import find
from tunesmith.core.run import Run
from tunesmith.models.forest import Batch
from tunesmith.models.policy import Policy
from tunesmith.train.verb import Result, resume, train

ROWS = [{"prompt": row["instruction"], "answer": row["output"]} for row in tiny.CHATS]
OWN: dict[str, dict[str, Any]] = {
    "grpo": {"answers": 3, "epochs": 2, "minibatches": 2, "beta": 0.1, "redraws": 1},
    "reinforce": {"answers": 2, "epochs": 2, "minibatches": 2},
}
CASES = {name: {**own, "sampling": {"max_tokens": 5}} for name, own in OWN.items()}
UPDATES = 4


class Crash(BaseException):
    """A process that dies without a word: nothing in the program may catch it."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward in which the answers of a random model differ."""
    path = tmp_path_factory.mktemp("reward") / "odd.py"
    path.write_text("def reward(answer):\n    return sum(answer.encode()) % 7 / 3\n", "utf-8")
    return path


@pytest.fixture(scope="module")
def make(base: Path, reward: Path) -> Callable[[str, Path], Run]:
    def run(name: str, where: Path) -> Run:
        options = {**CASES[name], "rewards": {"python": {"path": str(reward)}}}
        settings = {"rows_per_step": 4, "steps": 4, "checkpoint_every": 2, "validate_every": 2, "tokens_per_batch": 90}
        method = {"lora": {"dropout": 0.1}}
        validation = {"fraction": 0.2}
        return tiny.run_of(
            base, where, {name: options}, rows=ROWS, method=method, train=settings, validation=validation
        )

    return run


@pytest.fixture(scope="module")
def whole(make: Callable[[str, Path], Run], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """The uninterrupted runs."""
    return {name: train(make(name, tmp_path_factory.mktemp(name))) for name in CASES}


def assert_same(ours: Result, theirs: Result) -> None:
    for kind in ("step", "validate"):
        assert tiny.figures(ours, kind) == tiny.figures(theirs, kind)
    assert ours.state.carried == theirs.state.carried
    checkpoints = [sorted(path.name for path in (run.folder.path / "checkpoints").iterdir()) for run in (ours, theirs)]
    assert checkpoints[0] == checkpoints[1]
    for part in ("model", *(f"checkpoints/{name}" for name in checkpoints[0])):
        left, right = tiny.tensors(ours.folder.path / part), tiny.tensors(theirs.folder.path / part)
        assert left
        assert left.keys() == right.keys()
        assert all(torch.equal(value, right[name]) for name, value in left.items())


def stopping_at(name: str, call: int, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Act when the loss of so many micro-batches was asked for."""
    kind: Any = find("objective", name)
    own, seen = kind.loss, []

    def loss(self: Any, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append(len(batch))
        if len(seen) == call:
            act()
        return own(self, policy, batch)

    monkeypatch.setattr(kind, "loss", loss)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def crash() -> None:
    raise Crash


@pytest.mark.parametrize("name", CASES)
def test_the_whole_run_learns_in_several_updates_of_each_rollout(name: str, whole: dict[str, Result]) -> None:
    steps = tiny.figures(whole[name])
    assert len(steps) == 4
    assert all(step["grad_norm"] > 0 for step in steps)


@pytest.mark.parametrize("name", CASES)
def test_stopped_between_two_updates_of_a_rollout(
    name: str,
    make: Callable[[str, Path], Run],
    whole: dict[str, Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was drawn is in the checkpoint, so nothing is drawn again: the answers are of weights that are gone."""
    with monkeypatch.context() as patch:
        stopping_at(name, 11, patch, stop)
        first = train(make(name, tmp_path))
    assert first.ended == "preempted"
    assert first.state.round is not None
    assert 0 < len(first.state.told) < UPDATES
    assert_same(resume(first.folder.path), whole[name])


@pytest.mark.parametrize("name", CASES)
def test_killed_and_resumed(
    name: str, make: Callable[[str, Path], Run], whole: dict[str, Result], tmp_path: Path
) -> None:
    """Rollouts after the last checkpoint are drawn again, the same ones."""

    def hear(event: Event) -> None:
        if event.kind == "step" and event.step == 3:
            crash()

    with pytest.raises(Crash):
        train(make(name, tmp_path), hear=hear)
    assert_same(resume(tmp_path / "run"), whole[name])
