"""Updates of preferences and of groups: the same prompts and answers for both sides, and what an update is.

An update is a forward and a backward pass and a step of AdamW over rows that are given: nothing is drawn while time is
taken. Adapters are given a change first, the same on both sides, so that no gradient is zero.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.rows import END, FIRST, text
from bench.work import Clock

ANSWERS = {"dpo": 2, "grpo": 8}
PROMPTS = {"dpo": 4, "grpo": 2}
Update = Callable[[], tuple[float, float]]
"""Learns once; returns the loss before it and the norm of its gradient."""


@dataclass(frozen=True)
class Rows:
    """Token ids: prompts [rows][length] and the answers of each [rows][answers][length], which end with END."""

    prompts: list[list[int]]
    answers: list[list[list[int]]]

    @property
    def tokens(self) -> int:
        """Tokens of all prompts and answers, each prompt once."""
        return sum(map(len, self.prompts)) + sum(len(answer) for row in self.answers for answer in row)

    @property
    def advantages(self) -> list[list[float]]:
        """Made-up advantages of each answer; a group's sum is zero."""
        return [[(number % 2) * 2.0 - 1.0 for number in range(len(answers))] for answers in self.answers]


def drawn(objective: str, prompt: int, answer: int, vocab: int) -> Rows:
    """Random rows; lengths differ by up to a tenth, as real ones never are equal."""
    draw = random.Random(7)

    def words(size: int) -> list[int]:
        return [draw.randrange(FIRST, vocab) for _ in range(int(size * draw.uniform(0.9, 1.0)))]

    prompts = [words(prompt) for _ in range(PROMPTS[objective])]
    return Rows(prompts, [[[*words(answer - 1), END] for _ in range(ANSWERS[objective])] for _ in prompts])


def write(rows: Rows, folder: Path) -> None:
    """Rows as tokens for the updates, and as text for what reads data before it learns."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.json").write_text(json.dumps({"prompts": rows.prompts, "answers": rows.answers}))
    pairs = [
        {"instruction": text(prompt), "chosen": text(first[:-1]), "rejected": text(second[:-1])}
        for prompt, (first, second, *_) in zip(rows.prompts, rows.answers, strict=True)
    ]
    (folder / "dpo.json").write_text(json.dumps(pairs))
    (folder / "grpo.json").write_text(json.dumps([{"prompt": text(prompt), "answer": "t3"} for prompt in rows.prompts]))


def read(folder: Path) -> Rows:
    """The rows of a folder."""
    return Rows(**json.loads((folder / "rows.json").read_text()))


def wake(trained: Any) -> None:
    """Give every adapter a change; both sides name LoRA's weights alike."""
    import torch

    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in sorted(trained.named_parameters()):
            if weight.requires_grad:
                weight.copy_(torch.randn(weight.shape, generator=draw) * (0.02 if "lora_B" in name else 0.05))


def learn(loss: Any, optimizer: Any) -> tuple[float, float]:
    """Backward and step; the loss and the norm of its gradient."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    square = sum(float(weight.grad.square().sum()) for group in optimizer.param_groups for weight in group["params"])
    optimizer.step()
    return float(loss.detach()), square**0.5


def optimizer_of(trained: Any) -> Any:
    """AdamW over what learns."""
    import torch

    return torch.optim.AdamW([weight for weight in trained.parameters() if weight.requires_grad], lr=1e-4)


def timed(update: Update, updates: int) -> dict[str, float]:
    """One update whose figures are compared, then some whose time is taken, divided by how many they are."""
    loss, norm = update()
    with Clock() as clock:
        for _ in range(updates):
            update()
    return {"loss": loss, "gradient": norm, **{name: value / updates for name, value in clock.figures.items()}}
