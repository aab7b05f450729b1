"""kill -9 at any moment: the run goes on from what is whole and ends as if nothing had happened, bit for bit.

A moment is a call by which a run makes something durable or visible: fsync, rename, replace, rmtree, mkdir. The child
kills itself at its n-th such call, before or after it, so every test hits the same moment every time.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_runs as runs
from attacks import LONG, command, forked, patched

from tunesmith.core.rundir import RunDir
from tunesmith.train.verb import resume, train

CALLS: tuple[tuple[Any, str], ...] = (
    (os, "fsync"),
    (os, "rename"),
    (os, "replace"),
    (os, "mkdir"),
    (shutil, "rmtree"),
    (pathlib.Path, "write_text"),
)


class Clock:
    """Counts the calls, and kills the process at one of them."""

    def __init__(self, moment: int, after: bool) -> None:
        self.now = 0
        self.moment = moment
        self.after = after

    def tick(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **more: Any) -> Any:
            self.now += 1
            mine = self.now == self.moment
            if mine and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*args, **more)
            finally:
                if mine:
                    os.kill(os.getpid(), signal.SIGKILL)

        return counted


def ticking(act: Callable[[], object], clock: Clock) -> None:
    for owner, name in CALLS:
        setattr(owner, name, clock.tick(getattr(owner, name)))
    act()


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, int]:
    """The run that nobody disturbed, and how many moments it has."""
    where = tmp_path_factory.mktemp("whole")
    clock = Clock(0, after=False)
    wanted = runs.run(base, where)
    before = [(owner, name, getattr(owner, name)) for owner, name in CALLS]
    try:
        ticking(lambda: train(wanted), clock)
    finally:
        for owner, name, call in before:
            setattr(owner, name, call)
    return runs.folder(where), clock.now


MOMENTS = range(40) if LONG else range(10)


def moment_of(number: int, total: int, count: int) -> int:
    """The moments are spread evenly over the run, and the last one is its last call."""
    return 1 + (total - 1) * number // (count - 1)


@pytest.mark.parametrize("number", MOMENTS)
def test_killed_and_resumed_is_uninterrupted(
    number: int, base: Path, whole: tuple[RunDir, int], tmp_path: Path
) -> None:
    unbroken, total = whole
    wanted = runs.run(base, tmp_path)
    clock = Clock(moment_of(number, total, len(MOMENTS)), after=number % 2 == 1)
    end = forked(lambda: ticking(lambda: train(wanted), clock), tmp_path / "log")
    assert end.status == -signal.SIGKILL, end.text
    go_on(wanted, runs.folder(tmp_path))
    same(runs.folder(tmp_path), unbroken)


def go_on(wanted: Any, found: RunDir) -> None:
    """What a person does next: resume, or start again where the folder says that no run began."""
    if not found.is_run():
        train(wanted)
    elif "done" not in found.record.read_text():
        resume(found.path)


def same(found: RunDir, unbroken: RunDir) -> None:
    assert runs.result(found) == runs.result(unbroken)
    assert runs.told(found, "step", "validate") == runs.told(unbroken, "step", "validate")
    left = [path.name for path in found.path.rglob("*staging*")]
    assert left == []


@pytest.mark.skipif(not LONG, reason="every single moment of a run: set TUNESMITH_LONG_ATTACKS=1")
def test_killed_at_every_single_moment(base: Path, whole: tuple[RunDir, int], tmp_path: Path) -> None:
    unbroken, total = whole
    failed: dict[int, str] = {}
    for moment in range(1, total + 1):
        where = tmp_path / str(moment)
        wanted = runs.run(base, where)
        forked(lambda: ticking(lambda: train(wanted), Clock(moment, after=False)), tmp_path / "log")  # noqa: B023
        try:
            go_on(wanted, runs.folder(where))
            same(runs.folder(where), unbroken)
        except (AssertionError, Exception) as error:
            failed[moment] = repr(error)
        shutil.rmtree(where)
    assert failed == {}, f"{len(failed)} of {total} moments"


def test_killed_again_and_again(base: Path, whole: tuple[RunDir, int], tmp_path: Path) -> None:
    """Every attempt dies at its 30th moment, the first checkpoint's middle among them; the work still ends."""
    unbroken, _ = whole
    wanted = runs.run(base, tmp_path)
    found = runs.folder(tmp_path)
    forked(lambda: ticking(lambda: train(wanted), Clock(34, after=True)), tmp_path / "log")
    for _ in range(3):
        forked(lambda: ticking(lambda: resume(found.path), Clock(19, after=True)), tmp_path / "log")
    go_on(wanted, found)
    same(found, unbroken)


def test_killed_in_the_command_line(base: Path, whole: tuple[RunDir, int], tmp_path: Path) -> None:
    """The same through `tunesmith train` and `tunesmith resume`, killed in the middle of its second checkpoint."""
    unbroken, _ = whole
    file = runs.run_file(runs.run(base, tmp_path), tmp_path / "run.yaml")
    found = runs.folder(tmp_path)

    def until_second() -> None:
        from tunesmith.train import checkpoint

        written = checkpoint._write_manifest

        def killed(folder: Path, *more: Any) -> None:
            if "00000004" in folder.name:
                os.kill(os.getpid(), signal.SIGKILL)
            written(folder, *more)

        with patched(checkpoint, "_write_manifest", killed):
            command("train", file)()

    assert forked(until_second, tmp_path / "log").status == -signal.SIGKILL
    assert [path.name for path in sorted(found.checkpoints.glob("step-*"))] == ["step-00000002"]
    end = forked(command("resume", found.path), tmp_path / "log")
    assert end.status == 0, end.text
    assert "step 2" in runs.notes(found)
    same(found, unbroken)
