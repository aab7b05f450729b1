"""SIGTERM and SIGINT: a run finishes its micro-batch, saves and leaves with status 0; a second one ends it at once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_runs as runs
from attacks import command, forked, one_paragraph, patched

from tunesmith.core.rundir import RunDir
from tunesmith.train.record import read_record
from tunesmith.train.verb import train


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The run that nobody disturbed."""
    where = tmp_path_factory.mktemp("whole")
    train(runs.run(base, where))
    return runs.folder(where)


def signalled(act: Callable[[], object], number: int, owner: Any, name: str, turn: int, times: int = 1) -> object:
    """Do `act`, with a signal to this very process at the n-th call of a function."""
    call = getattr(owner, name)
    seen = []

    def counted(*args: Any, **more: Any) -> Any:
        seen.append(1)
        if len(seen) == turn:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return call(*args, **more)

    with patched(owner, name, counted):
        return act()


def places() -> dict[str, tuple[Any, str, int]]:
    """Moments of a run: (where a function is looked up, its name, its which call)."""
    from tunesmith.train import checkpoint, loop, setup, verb

    return {
        "while the model is loaded": (setup, "load", 1),
        "before the first step": (loop.Loop, "_one_step", 1),
        "in the first micro-batch": (loop.Loop, "_gradients", 1),
        "between gradient and update": (loop.Loop, "_apply", 3),
        "while validating": (loop, "validate", 2),
        "in a checkpoint": (checkpoint, "_write_manifest", 3),
        "while pruning": (checkpoint, "prune", 3),
        "in the last step": (loop.Loop, "_gradients", runs.STEPS),
        "while the model is saved": (verb, "save_tokenizer", 1),
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("place", sorted(places()))
def test_a_signal_is_a_wish(place: str, number: int, base: Path, whole: RunDir, tmp_path: Path) -> None:
    file = runs.run_file(runs.run(base, tmp_path), tmp_path / "run.yaml")
    found = runs.folder(tmp_path)
    act = command("train", file)
    end = forked(lambda: signalled(act, number, *places()[place]), tmp_path / "log")
    assert end.status == 0, end.text
    assert "Traceback" not in end.text
    state = read_record(found)["ended"]
    assert state == ("done" if place == "while the model is saved" else "preempted")
    if state == "preempted":
        assert f"resume {found.path}" in end.text
        end = forked(command("resume", found.path), tmp_path / "log")
        assert end.status == 0, end.text
    assert runs.result(found) == runs.result(whole)
    assert runs.told(found, "step") == runs.told(whole, "step")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("place", ["in the first micro-batch", "while validating", "in a checkpoint"])
def test_a_second_signal_leaves_at_once(place: str, number: int, base: Path, whole: RunDir, tmp_path: Path) -> None:
    file = runs.run_file(runs.run(base, tmp_path), tmp_path / "run.yaml")
    found = runs.folder(tmp_path)
    act = command("train", file)
    end = forked(lambda: signalled(act, number, *places()[place], times=2), tmp_path / "log")
    assert end.status == 130, end.text
    assert "Traceback" not in end.text
    assert "ended" not in read_record(found)
    assert list(found.path.rglob("*.staging")) == []
    end = forked(command("resume", found.path), tmp_path / "log")
    assert end.status == 0, end.text
    assert runs.result(found) == runs.result(whole)


def test_a_finished_run_is_not_resumed(whole: RunDir, tmp_path: Path) -> None:
    end = forked(command("resume", whole.path), tmp_path / "log")
    assert end.status == 2
    one_paragraph(end.text)


def test_real_processes(base: Path, whole: RunDir, tmp_path: Path) -> None:
    """`python -m tunesmith train`, SIGTERM from outside after its first step, `python -m tunesmith resume`."""
    file = runs.run_file(runs.run(base, tmp_path), tmp_path / "run.yaml")
    found = runs.folder(tmp_path)
    program = [sys.executable, "-m", "tunesmith"]
    with subprocess.Popen([*program, "train", str(file)], stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            if found.events.is_file() and '"kind": "step"' in found.events.read_text("utf-8"):
                process.send_signal(signal.SIGTERM)
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.05)
        text = process.communicate()[0]
    assert process.returncode == 0, text
    if read_record(found)["ended"] == "preempted":
        assert "resume" in text
        subprocess.run([*program, "resume", str(found.path)], check=True, capture_output=True)
    assert runs.result(found) == runs.result(whole)
    assert runs.told(found, "step", "validate") == runs.told(whole, "step", "validate")
