"""What objectives over pairs share: a prompt, a better answer beside a worse one, in the order of the batch.

prompt ──┬── chosen      answers 0, 2, 4 …        the prompt is computed once
         └── rejected    answers 1, 3, 5 …
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.core.records import Preference, Record
from tunesmith.models.forest import Batch, by_row
from tunesmith.objectives import Objective
from tunesmith.objectives._trend import told_apart


class OfPairs(Objective):
    """An objective whose rows are pairs."""

    takes: ClassVar[type[Record]] = Preference
    unit: ClassVar[str] = "pairs"

    def count(self, batch: Batch) -> float:
        return batch.answers / 2

    def signs(self, steps: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
        return told_apart(steps)


def sides(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values of answers [R] as those of chosen and of rejected ones, [R / 2] each."""
    return values[0::2], values[1::2]


def answer_lengths(batch: Batch) -> Tensor:
    """[R] the learned tokens of each answer, counted with their weights."""
    return by_row(batch, torch.ones_like(batch.targets.weight))


def ranked(lead: Tensor, wrong: float = 0.0) -> Tensor:
    """[P] - log sigmoid(lead), where the share `wrong` of the pairs is taken to be the wrong way round."""
    return -(1 - wrong) * F.logsigmoid(lead) - wrong * F.logsigmoid(-lead)


def pair_figures(rewards: Tensor, logprobs: Tensor | None = None) -> dict[str, Tensor]:
    """Sums over pairs, from what the objective takes for the reward of each answer [R] and from its log p [R]."""
    chosen, rejected = sides(rewards.detach())
    figures = {
        "accuracy": (chosen > rejected).float().sum(),
        "chosen": chosen.sum(),
        "rejected": rejected.sum(),
        "lead": (chosen - rejected).sum(),
    }
    return figures if logprobs is None else {**figures, "chosen_logprob": sides(logprobs.detach())[0].sum()}
