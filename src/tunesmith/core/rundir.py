"""The run folder: names of what is in it, and the writing that survives a crash.

RUN/
  run.yaml          the resolved run, as it can be trained again
  record.json       versions, machine, fingerprints, data report
  events.jsonl      one line an event
  data_report.json  rows in, used, rejected; rejects.jsonl beside it
  checkpoints/step-000123/   a checkpoint with manifest.json
  model/            the adapter or the model, loadable by PEFT or transformers
  plots/loss.png
  evaluation/       results.json, report.html
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.problem import Problem


@dataclass(frozen=True, slots=True)
class RunDir:
    """A run folder by its path."""

    path: Path

    @property
    def run_file(self) -> Path:
        return self.path / "run.yaml"

    @property
    def record(self) -> Path:
        return self.path / "record.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def data_report(self) -> Path:
        return self.path / "data_report.json"

    @property
    def rejects(self) -> Path:
        return self.path / "rejects.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    def is_run(self) -> bool:
        """Whether the folder holds a run."""
        return self.run_file.is_file()


def open_run(path: Path) -> RunDir:
    """The run in a folder.

    Raises:
        Problem: the folder is not there or holds no run.
    """
    folder = RunDir(path)
    if not path.is_dir():
        raise Problem(str(path), "there is no such folder", "Give the folder that `tunesmith train` printed")
    if not folder.is_run():
        raise Problem(str(path), "this folder holds no run (no run.yaml in it)", "Give the folder of a run")
    return folder


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file by rename after fsync, so that a reader sees the old or the new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with staging.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write JSON that a person can read, atomically."""
    write_atomic(path, (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode())


def sync_file(path: Path) -> None:
    """Make a written file's content durable."""
    _sync(path)


@contextmanager
def held(folder: Path, busy: Problem) -> Generator[None]:
    """Hold a folder's lock (`.lock` in it) against other processes.

    Raises:
        Problem: `busy`, where another process holds it.
    """
    import fcntl

    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise busy from error
        yield


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable; a no-op where folders cannot be opened (Windows)."""
    if os.name != "nt":
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
