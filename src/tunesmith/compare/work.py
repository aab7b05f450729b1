"""Carry a study out: each trial trains and is measured in a process of its own, and goes on where it was stopped.

trial ─▶ refused before (it cannot fit) ─▶ a row with the reason
      └▶ train | resume ─▶ evaluate ─▶ Outcome      each a command of tunesmith, with its own peak of memory
"""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import yaml

from tunesmith.compare.outcome import Outcome, Refusal, finished, read_outcome, refusal_file
from tunesmith.compare.study import Study, Trial
from tunesmith.core.events import Event, read_events
from tunesmith.core.problem import Problem
from tunesmith.core.rundir import RunDir, held, write_atomic, write_json
from tunesmith.train.plan import plan

Progress = Callable[[str, int, int], None]
"""Told what is done, how far it is, and how far it goes."""

PACE_STEPS = 8
"""Steps whose time tells how many fit into a budget of minutes."""
POLL_SECONDS = 0.5
REFUSED = 2
"""The exit status of a command whose input is at fault."""


class Failed(Exception):
    """A command of a trial ended in a way that is no fault of its input; its output says how."""


def carry_out(study: Study, listen: Progress) -> Iterator[Outcome | Refusal]:
    """Do every trial that is not done yet, and give what each came to, in their order.

    Raises:
        Problem: the folder holds another study, or another process works in it.
        Failed: a trial crashed.
        KeyboardInterrupt: asked to stop; the trial under way has saved a checkpoint.
    """
    study.folder.mkdir(parents=True, exist_ok=True)
    busy = Problem(str(study.folder), "another process works on this study right now", "Wait for it to end")
    with held(study.folder, busy), _terminated_as_interrupted():
        study.begin()
        measured: set[str] = set()
        for trial in study.trials():
            found = read_outcome(trial) or _try(study, trial, trial.base not in measured, listen)
            if isinstance(found, Outcome):
                measured.add(trial.base)
            yield found


def _try(study: Study, trial: Trial, with_base: bool, listen: Progress) -> Outcome | Refusal:
    try:
        _train(study, trial, listen)
    except Problem as problem:
        write_json(refusal_file(trial), {"reason": str(problem)})
    else:
        against = "base" if with_base else "nothing"
        _surely(["evaluate", str(trial.folder.path), f"against={against}"], trial, study, lambda: None)
    found = read_outcome(trial)
    assert found is not None
    return found


def _train(study: Study, trial: Trial, listen: Progress) -> None:
    """Train, or go on with, a trial's run; a folder that a crash left behind without a run is begun anew.

    Raises:
        Problem: the run cannot be carried out.
    """
    folder = trial.folder
    if finished(folder):
        return
    watch = _Watch(folder, trial.name, listen)
    if folder.is_run():
        _surely(["resume", str(folder.path)], trial, study, watch)
        return
    steps = _steps(study, trial)
    plan(trial.parsed(steps), base=Path(study.home))
    shutil.rmtree(folder.path, ignore_errors=True)
    file = folder.path.with_name(f"{folder.path.name}.yaml")
    write_atomic(file, yaml.safe_dump(trial.parsed(steps).plain(), sort_keys=False, allow_unicode=True).encode())
    _command(["train", str(file)], trial, study, watch)


def _steps(study: Study, trial: Trial) -> int | None:
    """How many steps the budget gives a trial; None for what the run file says."""
    if study.budget.tokens is not None:
        return max(1, math.ceil(study.budget.tokens / _tokens_per_step(study, trial)))
    if study.budget.minutes is None:
        return None
    return max(1, round(60 * study.budget.minutes / _seconds_per_step(study, trial)))


def _tokens_per_step(study: Study, trial: Trial) -> float:
    from tunesmith.train.setup import gather

    inputs = gather(trial.parsed(), Path(study.home), _unheard)
    return float(inputs.prepared.train.lengths.sum()) / inputs.stream.steps_per_epoch


def _seconds_per_step(study: Study, trial: Trial) -> float:
    """The time of a step, seen on a few; the folder of these is not kept."""
    folder = RunDir(trial.folder.path.with_name(f"{trial.folder.path.name}.pace"))
    shutil.rmtree(folder.path, ignore_errors=True)
    short = {**trial.parsed(PACE_STEPS).plain(), "output": str(folder.path)}
    file = folder.path.with_name(f"{folder.path.name}.yaml")
    write_atomic(file, yaml.safe_dump(short, sort_keys=False, allow_unicode=True).encode())
    try:
        _command(["train", str(file)], trial, study, lambda: None)
        steps = [event for event in read_events(folder.events) if event.kind == "step"]
        return median(event.values["seconds"] for event in steps[1:])
    finally:
        shutil.rmtree(folder.path, ignore_errors=True)
        file.unlink(missing_ok=True)


class _Watch:
    """Reads how far a run is from its events."""

    def __init__(self, folder: RunDir, name: str, listen: Progress) -> None:
        self.folder, self.name, self.listen = folder, name, listen

    def __call__(self) -> None:
        if not self.folder.events.is_file():
            return
        total = 0
        done = 0
        for event in read_events(self.folder.events):
            total = int(event.values["total_steps"]) if event.kind == "start" else total
            done = event.step if event.kind == "step" else done
        if total:
            self.listen(self.name, done, total)


def _surely(words: list[str], trial: Trial, study: Study, watch: Callable[[], None]) -> None:
    """Run a command that has no reason to be refused, after what went before it.

    Raises:
        Failed: it was refused, or crashed.
    """
    try:
        _command(words, trial, study, watch)
    except Problem as problem:
        raise Failed(str(problem)) from problem


def _command(words: list[str], trial: Trial, study: Study, watch: Callable[[], None]) -> None:
    """Run one command of tunesmith in its own process, from the folder that paths start from.

    Raises:
        Problem: what the command said about its input.
        Failed: it crashed.
    """
    log = trial.folder.path.with_name(f"{trial.folder.path.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "tunesmith", *words],
            stdout=out,
            stderr=subprocess.PIPE,
            cwd=study.home,
            text=True,
            start_new_session=True,
        )
        said = _waited(process, watch)
    if process.returncode == REFUSED:
        raise Problem(trial.name, said.strip())
    if process.returncode != 0:
        log.write_text(log.read_text(encoding="utf-8") + said, encoding="utf-8")
        raise Failed(f"{trial.name}: `tunesmith {' '.join(words)}` ended with {process.returncode}; see {log}\n{said}")


def _waited(process: subprocess.Popen[str], watch: Callable[[], None]) -> str:
    """What a process says on standard error until it ends.

    It has a session of its own, so that a stop reaches it once, from here, and as a request to end, which shells do
    not tell what runs in the background to ignore. It is waited for, since it saves first.
    """
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.communicate(timeout=POLL_SECONDS)[1]
            watch()
    except KeyboardInterrupt:
        process.terminate()
        process.communicate()
        raise


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """A request to end stops a study as Ctrl-C does; outside of the main thread signals are left as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _unheard(event: Event) -> None:
    """Nobody listens."""
