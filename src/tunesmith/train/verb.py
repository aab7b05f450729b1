"""Train and resume: from a Run to a run folder.

gather ─▶ new folder, locked ─▶ build ─▶ loop ─▶ best weights ─▶ model/ ─▶ record
                                 └ resume: fingerprints compared, newest whole checkpoint restored
"""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import yaml

from tunesmith.core.allocator import give_back_at_once, keep_freed_memory
from tunesmith.core.events import Event, read_events
from tunesmith.core.problem import Problem
from tunesmith.core.run import Run, parse_run, read_run
from tunesmith.core.rundir import RunDir, held, open_run, sync_folder, write_atomic
from tunesmith.data.golden import golden_ids
from tunesmith.models.device import choose, peak_bytes
from tunesmith.models.load import quietly, save_tokenizer
from tunesmith.models.quantize import count
from tunesmith.train import checkpoint
from tunesmith.train.disk import gone, in_words
from tunesmith.train.listeners import Listener
from tunesmith.train.loop import Loop, Parts, State
from tunesmith.train.record import check_unchanged, read_record, versions, write_record
from tunesmith.train.setup import Inputs, Ready, build, choose_checkpointing, gather, memory_may_be_short
from tunesmith.train.signals import Wish, wish_to_stop
from tunesmith.train.survey import check_disk
from tunesmith.train.tell import Hear, Teller
from tunesmith.train.world import World


@dataclass(frozen=True)
class Result:
    """How a run ended: `done`, `stalled` (early stopping) or `preempted` (asked to stop; it can be resumed)."""

    folder: RunDir
    ended: str
    state: State


def train(run: Run, *, name: str = "run", base: Path = Path(), hear: Hear = lambda event: None) -> Result:
    """Train from the start.

    name: what a new folder under `runs/` is called after; base: what relative paths of data start from.

    Raises:
        Problem: a fault of the run, its data, its model or the machine; nothing is lost.
    """
    waiting: list[Event] = []

    def early(event: Event) -> None:
        waiting.append(event)
        hear(event)

    world = _world(run)
    inputs = _gathered(run, base, early, world)
    folder = RunDir(Path(world.agree(lambda: str(_new_folder(inputs.run, name).path))))
    with in_words(folder.path), _locked(folder, world), wish_to_stop() as wish:
        if world.main:
            _check_new(folder)
            _begin(inputs, folder, base, waiting)
        return _run(inputs, folder, hear, wish, world, resumed=False)


def resume(folder: Path, *, accept: tuple[str, ...] = (), hear: Hear = lambda event: None) -> Result:
    """Go on with a run that was stopped, from its newest whole checkpoint.

    accept: names of inputs that may have changed since.

    Raises:
        Problem: no run, a finished run, or inputs that changed.
    """
    where = open_run(folder)
    record = read_record(where)
    if record.get("ended") in ("done", "stalled"):
        raise Problem(
            str(folder),
            f"this run has ended ({record['ended']})",
            "To go on with new data, start a new run with model.path set to this folder",
        )
    run = read_run(where.run_file)
    world = _world(run)
    with in_words(folder), _locked(where, world), wish_to_stop() as wish:
        inputs = _gathered(run, Path(record.get("base", ".")), hear, world)
        now = inputs.fingerprints
        check_unchanged(record.get("fingerprints", {}), now, accept, str(folder))
        if accept and world.main:
            write_record(where, {"fingerprints": now})
        return _run(inputs, where, hear, wish, world, resumed=True)


def _world(run: Run) -> World:
    return World(choose(run.model.device, "float32").device)


def _gathered(run: Run, base: Path, hear: Hear, world: World) -> Inputs:
    """What the run reads, on the main rank first: the others find its data built and take its choices."""
    inputs = choose_checkpointing(gather(run, base, hear), hear) if world.main else None
    plain = world.agree(lambda: inputs.run.plain() if inputs else {})
    return inputs or gather(parse_run(plain, "run"), base, lambda event: None)


def _begin(inputs: Inputs, folder: RunDir, base: Path, waiting: list[Event]) -> None:
    """Write down what the run is before it starts, and what was told while it was gathered.

    The run file comes last: it makes the folder a run, which can then be resumed whatever happens.
    """
    _keep_report(inputs, folder)
    write_record(folder, {**_facts(inputs), "base": str(base.resolve()), "started": time.time()})
    for event in waiting:
        _log(folder, event)
    write_atomic(folder.run_file, yaml.safe_dump(inputs.run.plain(), sort_keys=False, allow_unicode=True).encode())


def _run(inputs: Inputs, folder: RunDir, hear: Hear, wish: Wish, world: World, *, resumed: bool) -> Result:
    tell = Teller(folder, cast("tuple[Listener, ...]", inputs.run.train.listeners), hear, main=world.main)
    if memory_may_be_short(inputs):
        give_back_at_once()
    elif inputs.run.model.device == "cpu":
        keep_freed_memory()
    try:
        ready = build(inputs, world, tell)
        saver = _Saver(inputs, ready, folder, world, tell)
        check_disk(folder.path, checkpoint.bytes_needed(ready.learned, ready.optimizer) * 3)
        state = saver.restored() if resumed else State()
        tell(Event("start", state.step, _start_figures(inputs, ready)))
        parts = Parts(
            inputs.run.train,
            ready.policy,
            inputs.objective,
            inputs.method,
            ready.learned.weights,
            inputs.optimizer,
            ready.optimizer,
            ready.steps,
            saver,
            world,
            tell,
        )
        ended = Loop(parts, state, wish).run()
        if ended != "preempted":
            saver.finish(state)
            _tell_method(inputs, ready, folder, tell)
            _tell_signs(inputs, folder, tell)
        if world.main:
            peak = peak_bytes(ready.policy.device)
            ending = {"ended": ended, "state": state.plain(), "finished": time.time(), "peak_memory_bytes": peak}
            write_record(folder, ending)
        tell(Event("end", state.step, {"ended": ended, "folder": str(folder.path)}))
        return Result(folder, ended, state)
    finally:
        tell.close()


def _tell_method(inputs: Inputs, ready: Ready, folder: RunDir, tell: Teller) -> None:
    """Tell the gist of what the method found out, and keep all of it in the record."""
    if found := inputs.method.report(ready.trained):
        tell.note(found[0])
        if tell.main:
            write_record(folder, {"method_report": found})


def _tell_signs(inputs: Inputs, folder: RunDir, tell: Teller) -> None:
    """Tell what the objective reads from the figures of the whole run."""
    if not tell.main:
        return
    steps = {event.step: event.values for event in read_events(folder.events) if event.kind == "step"}
    for text in inputs.objective.signs([steps[number] for number in sorted(steps)]):
        tell.note(text)


class _Saver:
    """Keeps a run's weights: checkpoints, the best so far, and the model at the end."""

    def __init__(self, inputs: Inputs, ready: Ready, folder: RunDir, world: World, tell: Teller) -> None:
        self.inputs = inputs
        self.ready = ready
        self.folder = folder
        self.world = world
        self.tell = tell
        self.saved = -1
        self.facts = {"versions": versions(), "fingerprints": inputs.fingerprints, "world": world.size}

    def checkpoint(self, state: State) -> None:
        """Write a checkpoint of everything, then prune older ones; one of this very step is left as it is."""
        if self.saved == state.step:
            return
        self._check_finite()
        path = self.folder.checkpoints / f"step-{state.step:08d}"
        self._on_main(lambda: self._write(path, state, whole=True))
        self.saved = state.step
        self.tell(Event("checkpoint", state.step, {"path": str(path)}))

    def best(self, state: State) -> None:
        """Keep the weights of the lowest validation loss."""
        self._check_finite()
        path = self.folder.checkpoints / f"best-{state.step:08d}"
        self._on_main(lambda: self._write(path, state, whole=False))

    def rollback(self) -> State:
        """Put the newest whole checkpoint back; a run that may roll back writes one before its first step."""
        found, _ = checkpoint.newest(self.folder.checkpoints)
        if found is None:
            raise Problem("train.on_nonfinite", "rollback found no checkpoint to go back to", "Set it to skip")
        state = self._put_back(found)
        self.tell.rewind(state.step)
        return state

    def restored(self) -> State:
        """The state of the newest whole checkpoint, put in place; a fresh one where there is none."""
        found, broken = checkpoint.newest(self.folder.checkpoints)
        for problem in broken:
            self._note(f"passed over: {problem}")
        if found is None:
            self.tell.rewind(-1)
            self._note("no checkpoint was written yet, so the run starts from its beginning")
            return State()
        state = self._put_back(found)
        self.saved = state.step
        self.tell.rewind(state.step)
        self._note(f"going on from step {state.step} ({found.path.name})")
        return state

    def finish(self, state: State) -> None:
        """Put the best weights back if they are wanted, and publish the model."""
        with self.inputs.optimizer.still(self.ready.optimizer):
            if self.inputs.run.train.keep == "best" and 0 <= state.best_step < state.step:
                self._put_best_back(self.folder.checkpoints / f"best-{state.best_step:08d}")
            self._check_finite()
            self._on_main(self._publish)

    def _put_back(self, found: checkpoint.Checkpoint) -> State:
        numbers, begun = checkpoint.restore(found, self.ready.learned, self.ready.optimizer)
        state = State.of(numbers)
        state.round = begun
        return state

    def _put_best_back(self, path: Path) -> None:
        try:
            checkpoint.restore(checkpoint.read(path), self.ready.learned, None)
        except Problem as problem:
            self._note(f"the last weights are kept, since the best ones are lost: {problem}")
        else:
            best = "reward was highest" if self.inputs.objective.online else "loss was lowest"
            self._note(f"kept the weights of step {int(path.name[5:])}, where the validation {best}")

    def _write(self, path: Path, state: State, *, whole: bool) -> None:
        optimizer = self.ready.optimizer if whole else None
        begun = state.round if whole else None
        checkpoint.save(path, self.ready.learned, optimizer, state.plain(), self.facts, begun)
        keep = self.inputs.run.train.keep_checkpoints if whole else 1
        checkpoint.prune(path, keep)

    def _publish(self) -> None:
        staging = self.folder.path / ".model.staging"
        shutil.rmtree(staging, ignore_errors=True)
        with quietly():
            self.inputs.method.save(self.ready.trained, staging)
        save_tokenizer(self.inputs.codec, self.inputs.found, staging)
        self.inputs.objective.finish(self.ready.policy, staging)
        shutil.rmtree(self.folder.model, ignore_errors=True)
        staging.rename(self.folder.model)
        sync_folder(self.folder.path)

    def _check_finite(self) -> None:
        for name, weight in self.ready.learned.weights.items():
            if not torch.isfinite(weight).all():
                raise Problem(
                    f"weight {name}",
                    "is not finite any more, so it is not saved; the checkpoints before it are whole",
                    "Lower optimizer lr, then: tunesmith resume",
                )

    def _on_main(self, act: Callable[[], None]) -> None:
        if self.world.main:
            if not self.folder.is_run():
                raise gone(self.folder.path)
            act()
        self.world.wait()

    def _note(self, text: str) -> None:
        self.tell(Event("note", values={"text": text}))


def _facts(inputs: Inputs) -> dict[str, Any]:
    return {
        "versions": versions(),
        "fingerprints": inputs.fingerprints,
        "golden_ids": golden_ids(inputs.codec),
        "template_was_set": inputs.codec.template_was_set,
        "objective": inputs.run.objective.name(),
        "method": inputs.run.method.name(),
    }


def _keep_report(inputs: Inputs, folder: RunDir) -> None:
    """Keep the report on the data and the list of rejected rows in the run."""
    report = inputs.prepared.report
    if report.rejects is not None and report.rejects.is_file():
        shutil.copyfile(report.rejects, folder.rejects)
        report.rejects = folder.rejects
    report.save(folder.data_report)


def _start_figures(inputs: Inputs, ready: Ready) -> dict[str, Any]:
    tokens = int(inputs.lengths.sum())
    return {
        "total_steps": inputs.total,
        "rows": len(inputs.prepared.train),
        "validation_rows": len(inputs.prepared.validation),
        "tokens_per_step": math.ceil(tokens / max(1, inputs.stream.steps_per_epoch)),
        "trainable": sum(weight.numel() for weight in ready.learned.weights.values()),
        "all": count(ready.trained),
    }


def _new_folder(run: Run, name: str) -> RunDir:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = RunDir(Path(run.output) if run.output else Path("runs") / f"{name}-{stamp}")
    _check_new(folder)
    with in_words(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    return folder


def _check_new(folder: RunDir) -> None:
    """Refuse a folder whose content the run would overwrite."""
    if folder.is_run():
        raise Problem(
            str(folder.path),
            "holds a run already, and it is not overwritten",
            f"Go on with it (tunesmith resume {folder.path}), or choose another output",
        )
    taken = [path.name for path in (folder.model, folder.checkpoints) if path.exists()]
    if taken:
        raise Problem(
            str(folder.path), f"holds {' and '.join(taken)}, which the run would replace", "Choose another output"
        )


@contextlib.contextmanager
def _locked(folder: RunDir, world: World) -> Iterator[None]:
    """Hold the run folder's lock on the main rank; a second start at the same time is refused."""
    if not world.main:
        yield
        return
    busy = Problem(str(folder.path), "another process trains this run right now", "Wait for it to end")
    with held(folder.path, busy):
        yield


def _log(folder: RunDir, event: Event) -> None:
    """Write an event that came before the folder existed; progress of reading is not kept."""
    if event.kind != "reading":
        with folder.events.open("a", encoding="utf-8") as file:
            file.write(replace(event, step=0).line() + "\n")
