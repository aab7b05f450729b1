"""What a trial came to, read from its run folder: quality, share that learns, speed, memory, size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tunesmith.compare.study import Trial
from tunesmith.core.events import Event, read_events
from tunesmith.core.rundir import RunDir

RESULTS = "results.json"
REFUSED = "refused.json"


@dataclass(frozen=True)
class Quality:
    """The first measure of an evaluation: its name, how it is shown, which way is better, the tuned value."""

    name: str
    shown: str
    better: str
    value: float


@dataclass(frozen=True)
class Outcome:
    """A finished trial.

    before: the same measure of the base, where it was taken; speed: tokens a second of training (median of steps);
    memory: peak bytes of its process; size: bytes of what it saved; trainable, all: numbers that learn, and those of
    the whole model with them.
    """

    trial: Trial
    quality: Quality
    before: float | None
    steps: int
    tokens: int
    seconds: float
    speed: float
    memory: int
    size: int
    trainable: int
    all: int


@dataclass(frozen=True)
class Refusal:
    """A trial that could not be carried out, and why."""

    trial: Trial
    reason: str


def read_outcome(trial: Trial) -> Outcome | Refusal | None:
    """What is known of a trial; None while it is not done."""
    refused = refusal_file(trial)
    if refused.is_file():
        return Refusal(trial, json.loads(refused.read_text(encoding="utf-8"))["reason"])
    results = trial.folder.evaluation / RESULTS
    if not (results.is_file() and finished(trial.folder)):
        return None
    record = json.loads(trial.folder.record.read_text(encoding="utf-8"))
    events = list(read_events(trial.folder.events))
    start = next(event for event in events if event.kind == "start")
    steps = [event for event in events if event.kind == "step"]
    return Outcome(
        trial,
        *quality_of(json.loads(results.read_text(encoding="utf-8"))),
        int(record["state"]["step"]),
        int(record["state"]["tokens"]),
        float(record["state"]["seconds"]),
        speed_of(steps),
        int(record["peak_memory_bytes"]),
        _weight(trial.folder.model),
        int(start.values["trainable"]),
        int(start.values["all"]),
    )


def refusal_file(trial: Trial) -> Path:
    """Where it is written why a trial cannot be carried out: beside the folder that it does not have."""
    path = trial.folder.path
    return path.with_name(f"{path.name}.{REFUSED}")


def finished(folder: RunDir) -> bool:
    """Whether a run has ended by itself."""
    if not folder.record.is_file():
        return False
    return json.loads(folder.record.read_text(encoding="utf-8")).get("ended") in ("done", "stalled")


def speed_of(steps: list[Event]) -> float:
    """Tokens a second over steps, the first one left out where there are others: it warms up."""
    counted = steps[1:] or steps
    return median(event.values["tokens"] / max(event.values["seconds"], 1e-9) for event in counted)


def quality_of(results: Mapping[str, Any]) -> tuple[Quality, float | None]:
    """The measure that speaks for a run, and what the base has in it: the first one, of labels where there are any."""
    row = results["sections"][0]["table"][0]
    tuned, base = (row["figures"].get(column) for column in ("tuned", "base"))
    quality = Quality(row["name"], row["shown"], row["better"], float(tuned["value"]))
    return quality, None if base is None else float(base["value"])


def _weight(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
