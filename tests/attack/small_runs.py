"""Small runs to be attacked, and what of them has to be equal to the last bit."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import tiny
import yaml

from tunesmith.core.events import read_events
from tunesmith.core.run import Run
from tunesmith.core.rundir import RunDir

STEPS = 6


def run(base: Path, where: Path, **changes: Any) -> Run:
    """A LoRA run of six steps with dropout, validation, and a checkpoint after every second step."""
    train = {"steps": STEPS, "checkpoint_every": 2, "validate_every": 3, "keep_checkpoints": 3, "epochs": 9}
    options = {"method": {"lora": {"dropout": 0.2, "rank": 2}}, "validation": {"fraction": 0.3}, **changes}
    options["train"] = {**train, **options.get("train", {})}
    return tiny.run_of(base, where, options.pop("objective", "sft"), **options)


def run_file(wanted: Run, file: Path) -> Path:
    """A run as a file for the command line."""
    file.write_text(yaml.safe_dump(wanted.plain()), "utf-8")
    return file


def folder(where: Path) -> RunDir:
    """Where such a run is."""
    return RunDir(where / "run")


def result(found: RunDir) -> dict[str, str]:
    """Hashes of what a run made: its model, and the weights, optimizer and random states of its last checkpoint."""
    last = max(found.checkpoints.glob("step-*"))
    files = [*found.model.glob("*.safetensors"), *last.glob("*.safetensors")]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def told(found: RunDir, *kinds: str) -> list[dict[str, Any]]:
    """What a run said of its steps, without what a clock said."""
    return [
        {"step": event.step, **{name: value for name, value in event.values.items() if name != "seconds"}}
        for event in read_events(found.events)
        if event.kind in kinds
    ]


def notes(found: RunDir) -> str:
    """All notes of a run."""
    return "\n".join(str(event.values["text"]) for event in read_events(found.events) if event.kind == "note")
