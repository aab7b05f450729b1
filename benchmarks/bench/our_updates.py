"""tunesmith's side of updates: model, method and levers as `train` puts them together, the objective's own loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.updates import Rows, Update, learn, optimizer_of, read, timed, wake

OBJECTIVES: dict[str, Any] = {"dpo": "dpo", "grpo": {"grpo": {"normalise": "answer", "beta": 0.0}}}


def update(settings: dict[str, Any]) -> dict[str, float]:
    """Settings: `place`, `objective`, `updates`; perhaps `model`, options of the run file's part of that name."""
    return timed(_ready(settings), settings["updates"])


def _ready(settings: dict[str, Any]) -> Update:
    from tunesmith.core.allocator import keep_freed_memory
    from tunesmith.core.run import parse_run
    from tunesmith.train.setup import build, gather

    keep_freed_memory()
    inputs = gather(parse_run(run_of(settings), "benchmark"), Path(), lambda event: None)
    ready = build(inputs, None, lambda event: None)
    policy, objective, method = ready.policy, inputs.objective, inputs.method
    wake(ready.trained)
    policy.trained.train()
    batch = _batch(read(Path(settings["place"])), settings["objective"]).to(policy.device)
    optimizer = optimizer_of(ready.trained)

    def once() -> tuple[float, float]:
        group = [batch] if objective.online else objective.round(policy, [batch], 0).groups[0]
        losses = [method.loss(policy, part, objective)[0] for part in group]
        return learn(sum(losses) / sum(objective.count(part) for part in group), optimizer)

    return once


def run_of(settings: dict[str, Any]) -> dict[str, Any]:
    """The run file: LoRA of rank 8 on all linear layers."""
    place = Path(settings["place"])
    return {
        "model": {"path": str(place / "model"), "device": "cpu", "dtype": "float32", **settings.get("model", {})},
        "data": str(place / f"{settings['objective']}.json"),
        "objective": OBJECTIVES[settings["objective"]],
        "method": {"lora": {"rank": 8, "alpha": 16, "dropout": 0.0}},
        "validation": {"fraction": 0},
        "train": {"steps": 1, "max_tokens": 4096, "checkpoint_activations": "off", "listeners": []},
    }


def _batch(rows: Rows, objective: str) -> Any:
    """The rows as a forest, each prompt with its answers, and what a round of GRPO gives each answer."""
    batch = _planted(rows)
    if objective == "dpo":
        return batch
    import torch

    lengths = torch.tensor([float(len(answer)) for row in rows.answers for answer in row])
    gain = torch.tensor([value for group in rows.advantages for value in group])
    for name, value in (("length", lengths), ("advantage", gain), ("share", 1 / lengths)):
        batch = batch.with_extra(name, value)
    return batch


def _planted(rows: Rows) -> Any:
    import numpy as np

    from tunesmith.core.rows import Piece, TokenRow
    from tunesmith.models.planting import plant

    def piece(tokens: list[int], weight: float) -> Piece:
        return Piece(np.array(tokens, np.int32), np.full(len(tokens), weight, np.float32))

    return plant(
        [
            TokenRow(piece(prompt, 0.0), tuple(piece(answer, 1.0) for answer in answers), index=number)
            for number, (prompt, answers) in enumerate(zip(rows.prompts, rows.answers, strict=True))
        ]
    )
