"""What is common to the sides that stand on transformers' Trainer: the rows, LoRA, the time of one step."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from bench.work import Clock
from transformers import TrainerCallback

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Watch(TrainerCallback):
    """Takes the time of training and what the trainer logs of its first step; counts the labels that are learned."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.logged: dict[str, float] = {}
        self.learned = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Start the clock, after the labels were counted."""
        rows = parts["train_dataloader"].dataset
        self.learned = sum(learned(row) for row in rows)
        self.clock.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Stop the clock; there is one step."""
        self.clock.stop()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **parts: Any) -> None:
        """Keep the figures of the step."""
        if logs and "loss" in logs:
            self.logged = dict(logs)

    @property
    def figures(self) -> dict[str, Any]:
        return {
            "loss": self.logged["loss"],
            "gradient": self.logged.get("grad_norm"),
            "learned": self.learned,
            **self.clock.figures,
        }


def learned(row: dict[str, Any]) -> int:
    """Labels of a row that are learned; nothing predicts the first of a row, or of a text packed into it."""
    sizes = row.get("seq_lengths") or []
    starts = {0, *itertools.accumulate(sizes)}
    return sum(label != -100 and place not in starts for place, label in enumerate(row.get("labels", row["input_ids"])))


def rows_of(settings: dict[str, Any], name: str) -> list[dict[str, list[int]]]:
    """The rows of a folder as tokens and labels."""
    return json.loads((Path(settings["place"]) / name / "rows.json").read_text("utf-8"))


def step_of_all(settings: dict[str, Any], rows: str) -> dict[str, Any]:
    """Arguments of a trainer with which all rows are one step; nothing moves in the step that warms up."""
    count = len(rows_of(settings, rows))
    return {
        "num_train_epochs": 1,
        "gradient_accumulation_steps": count,
        "learning_rate": 0.0 if rows == "warm" else 1e-4,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 0,
    }


def lora() -> Any:
    """LoRA of rank 8 on all linear layers."""
    from peft import LoraConfig

    return LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=LINEARS, task_type="CAUSAL_LM")
