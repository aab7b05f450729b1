"""resumed == uninterrupted, bit for bit: weights, optimizer, random states and what was told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from tunesmith.core.events import Event
from tunesmith.core.plugins import find
from tunesmith.core.problem import Problem
from tunesmith.core.run import Run
from tunesmith.models.forest import Batch
from tunesmith.models.policy import Policy
from tunesmith.train.verb import Result, resume, train

CASES: dict[str, dict[str, Any]] = {
    "sft": {"method": {"lora": {"dropout": 0.2}}},
    "pretrain": {"method": "full"},
    "dpo": {"method": {"lora": {"dropout": 0.1, "form": "dora"}}},
    "bco": {"method": {"lora": {"dropout": 0.1}}},
    "classify": {"method": {"lora": {"dropout": 0.1}}},
    "tag": {"method": "full"},
    "embed": {"method": {"lora": {"dropout": 0.1}}},
    "reward": {"method": {"freeze": {"last": 1}}},
}
TRAIN = {
    "neftune": 5,
    "epochs": 3,
    "tokens_per_batch": 120,
    "checkpoint_every": 2,
    "validate_every": 3,
    "rows_per_step": 4,
}


class Crash(BaseException):
    """A process that dies without a word: nothing in the program may catch it."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base"))


def run(base: Path, where: Path, objective: str, **changes: Any) -> Run:
    options = {**CASES[objective], "validation": {"fraction": 0.2}, **changes}
    return tiny.run_of(base, where, objective, **options, train={**TRAIN, **options.pop("train", {})})


def at_step(step: int, act: Callable[[], None]) -> Callable[[Event], None]:
    def hear(event: Event) -> None:
        if event.kind == "step" and event.step == step:
            act()

    return hear


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def crash() -> None:
    raise Crash


def assert_bitwise(ours: Path, theirs: Path) -> None:
    """Every tensor of the result and of the last checkpoints is the same, and so is every figure that was told."""
    assert {path.name for path in (ours / "checkpoints").iterdir()} == {
        path.name for path in (theirs / "checkpoints").iterdir()
    }
    for part in ("model", *(f"checkpoints/{path.name}" for path in (ours / "checkpoints").iterdir())):
        left, right = tiny.tensors(ours / part), tiny.tensors(theirs / part)
        assert left
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert torch.equal(value, right[name]), f"{part}: {name}"


def assert_same_story(ours: Result, theirs: Result) -> None:
    for kind in ("step", "validate"):
        assert tiny.figures(ours, kind) == tiny.figures(theirs, kind)
    assert {**ours.state.plain(), "seconds": 0} == {**theirs.state.plain(), "seconds": 0}


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """The uninterrupted runs."""
    where = tmp_path_factory.mktemp("whole")
    return {name: train(run(base, where / name, name)) for name in CASES}


@pytest.mark.parametrize(
    ("objective", "step"),
    [("sft", 1), ("sft", 6), ("pretrain", 4), ("dpo", 4), ("reward", 2), ("classify", 3), ("tag", 4)],
)
def test_asked_to_stop_and_resumed(
    objective: str, step: int, base: Path, whole: dict[str, Result], tmp_path: Path
) -> None:
    first = train(run(base, tmp_path, objective), hear=at_step(step, stop))
    assert first.ended == "preempted"
    assert first.state.step == step
    assert not first.folder.model.exists()
    second = resume(first.folder.path)
    assert second.ended == "done"
    assert_same_story(second, whole[objective])
    assert_bitwise(second.folder.path, whole[objective].folder.path)


@pytest.mark.parametrize("objective", CASES)
def test_crashed_and_resumed(objective: str, base: Path, whole: dict[str, Result], tmp_path: Path) -> None:
    """Steps after the last checkpoint are done again, and told once."""
    with pytest.raises(Crash):
        train(run(base, tmp_path, objective), hear=at_step(5, crash))
    second = resume(tmp_path / "run")
    assert_same_story(second, whole[objective])
    assert_bitwise(second.folder.path, whole[objective].folder.path)


def test_stopped_between_two_micro_batches(
    base: Path, whole: dict[str, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind: Any = find("objective", "sft")
    own, seen = kind.loss, []

    def loss(self: Any, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if torch.is_grad_enabled():
            seen.append(len(batch))
            if len(seen) == 6:
                stop()
        return own(self, policy, batch)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "loss", loss)
        first = train(run(base, tmp_path, "sft"))
    assert first.ended == "preempted"
    assert len(seen) == 6
    second = resume(first.folder.path)
    assert_same_story(second, whole["sft"])
    assert_bitwise(second.folder.path, whole["sft"].folder.path)


def test_stopped_before_its_first_step(base: Path, whole: dict[str, Result], tmp_path: Path) -> None:
    def hear(event: Event) -> None:
        if event.kind == "start":
            stop()

    first = train(run(base, tmp_path, "sft"), hear=hear)
    assert (first.ended, first.state.step) == ("preempted", 0)
    second = resume(first.folder.path)
    assert_same_story(second, whole["sft"])
    assert_bitwise(second.folder.path, whole["sft"].folder.path)


def test_stopped_at_every_step(base: Path, whole: dict[str, Result], tmp_path: Path) -> None:
    result = train(run(base, tmp_path, "pretrain"), hear=at_step(1, stop))
    for step in range(2, whole["pretrain"].state.step):
        assert result.ended == "preempted"
        result = resume(result.folder.path, hear=at_step(step, stop))
    result = resume(result.folder.path)
    assert_same_story(result, whole["pretrain"])
    assert_bitwise(result.folder.path, whole["pretrain"].folder.path)


def test_resumed_in_another_process(base: Path, whole: dict[str, Result], tmp_path: Path) -> None:
    first = train(run(base, tmp_path, "sft"), hear=at_step(2, stop))
    code = (
        f"from tunesmith.train.verb import resume; from pathlib import Path; resume(Path({str(first.folder.path)!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert_bitwise(first.folder.path, whole["sft"].folder.path)


def test_a_broken_checkpoint_is_passed_over(base: Path, whole: dict[str, Result], tmp_path: Path) -> None:
    with pytest.raises(Crash):
        train(run(base, tmp_path, "sft"), hear=at_step(5, crash))
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert len(checkpoints) == 2
    weights = checkpoints[-1] / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    second = resume(tmp_path / "run")
    notes = [event.values["text"] for event in tiny.events(second, "note")]
    assert any("passed over" in note and checkpoints[-1].name in note for note in notes)
    assert any(f"going on from step {int(checkpoints[0].name[5:])}" in note for note in notes)
    assert_same_story(second, whole["sft"])


def test_what_was_told_before_and_after_is_one_file(base: Path, tmp_path: Path) -> None:
    first = train(run(base, tmp_path, "sft"), hear=at_step(3, stop))
    second = resume(first.folder.path)
    ends = [event.values["ended"] for event in tiny.events(second, "end")]
    assert ends == ["preempted", "done"]
    steps = [event.step for event in tiny.events(second, "step")]
    assert steps == list(range(1, second.state.step + 1))


def test_an_ended_run_is_not_resumed(whole: dict[str, Result]) -> None:
    with pytest.raises(Problem, match="has ended"):
        resume(whole["sft"].folder.path)


def test_changed_rows_stop_a_resume_unless_accepted_by_name(base: Path, tmp_path: Path) -> None:
    first = train(run(base, tmp_path, "sft"), hear=at_step(2, stop))
    data = tmp_path / "sft.jsonl"
    data.write_text(data.read_text("utf-8").replace("tree", "plant"), "utf-8")
    with pytest.raises(Problem, match="has changed since it was started") as caught:
        resume(first.folder.path)
    accepted = [word for word in caught.value.hint.split() if word != "--accept"][-1]
    assert resume(first.folder.path, accept=(accepted,)).ended == "done"
