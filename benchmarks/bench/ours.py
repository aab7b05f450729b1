"""tunesmith's side of a training benchmark: `train` as the command line calls it, on a run file's choices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.work import Clock


class Watch:
    """Hears a run, and takes the time from its start to the end of its last step."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.told: dict[str, Any] = {}
        self.learned = 0

    def hear(self, event: Any) -> None:
        """Take note of an event of the run."""
        if event.kind == "step":
            self.clock.stop()
            self.told = dict(event.values)
        elif event.kind == "start":
            self.clock.start()


def train(settings: dict[str, Any]) -> dict[str, Any]:
    """One step to warm up, then one that is timed; settings: `place`, `learns`, `objective`, `model`."""
    _once(settings, "warm")
    watch = _once(settings, "rows")
    return {
        "loss": watch.told["loss"],
        "gradient": watch.told["grad_norm"],
        "tokens": watch.told["tokens"],
        "learned": watch.learned,
        **watch.clock.figures,
    }


def _once(settings: dict[str, Any], rows: str) -> Watch:
    from tunesmith.core.run import parse_run
    from tunesmith.train.setup import gather
    from tunesmith.train.verb import train as start

    watch = Watch()
    run = parse_run(run_of(settings, rows, Path.cwd() / f"run-{rows}"), "benchmark")
    watch.learned = int(gather(run, Path(), lambda event: None).prepared.train.learned.sum())
    start(run, hear=watch.hear)
    return watch


def run_of(settings: dict[str, Any], rows: str, output: Path) -> dict[str, Any]:
    """The run file: one step over all rows of a folder, at a rate that stays."""
    place = Path(settings["place"])
    full = settings["learns"] == "full"
    objective = settings.get("objective", "sft")
    return {
        "model": {"path": str(place / "model"), "device": "cpu", "dtype": "float32", **settings.get("model", {})},
        "data": str(place / rows / ("texts.jsonl" if objective == "pretrain" else "asked.json")),
        "objective": objective,
        "method": "full" if full else {"lora": {"rank": 8, "alpha": 16, "dropout": 0.0}},
        "optimizer": {"adamw": {"lr": 1e-4}},
        "validation": {"fraction": 0},
        "train": {
            "steps": 1,
            "rows_per_step": len(json.loads((place / rows / "rows.json").read_text())),
            "max_tokens": 2048,
            "schedule": "constant",
            "warmup": 0,
            "checkpoint_activations": "off",
            "listeners": [],
            **settings.get("train", {}),
        },
        "output": str(output),
    }
