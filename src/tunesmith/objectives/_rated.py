"""What objectives over rated answers share: a prompt and one answer, found good (value 1) or bad (value 0)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from tunesmith.core.problem import Problem
from tunesmith.core.records import Rated, Record
from tunesmith.data.store import TokenStore
from tunesmith.models.forest import Batch, by_row
from tunesmith.models.policy import Policy
from tunesmith.objectives._reference import WithReference
from tunesmith.objectives._trend import unlikelier

GOOD = 0.5
"""Values above it are those of good answers."""


class OfRated(WithReference):
    """An objective whose rows are rated answers."""

    takes: ClassVar[type[Record]] = Rated
    unit: ClassVar[str] = "answers"

    def check_rows(self, rows: TokenStore) -> None:
        good = int((rows.first_values > GOOD).sum())
        if good in (0, len(rows)):
            kinds = ("good", "bad") if good else ("bad", "good")
            raise Problem(
                "data",
                f"all {len(rows):,} training rows are rated {kinds[0]} and none {kinds[1]}, and {self.name()} learns "
                "from the difference",
                f"Add rows with {kinds[1]} answers" + (", or learn the good ones alone with sft" if good else ""),
            )

    def count(self, batch: Batch) -> float:
        return batch.answers

    def signs(self, steps: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
        return unlikelier(steps, "good")


def signs(batch: Batch) -> Tensor:
    """[R] 1 for good answers, -1 for bad ones."""
    return torch.where(batch.values > GOOD, 1.0, -1.0)


def rewards_of(policy: Policy, batch: Batch, beta: float) -> tuple[Tensor, Tensor]:
    """[R] the implied reward of each answer, and [R] its log-probability."""
    logprobs = by_row(batch, policy.logprobs(batch))
    return beta * (logprobs - batch.extras["reference"]), logprobs


def with_good_share(policy: Policy, batches: Sequence[Batch]) -> list[Batch]:
    """The batches of a step with `good_share` [R], the share of all its answers that are good."""
    good = policy.ranks.total(sum(float((batch.values > GOOD).sum()) for batch in batches))
    total = policy.ranks.total(sum(batch.answers for batch in batches))
    return [batch.with_extra("good_share", torch.full_like(batch.values, good / max(total, 1))) for batch in batches]


def rated_figures(batch: Batch, rewards: Tensor, shift: Tensor) -> dict[str, Tensor]:
    """Sums over answers: how many rewards are on their side of `shift`; the mean reward of the good and of the bad.

    The means are over the answers of their kind in the step; where it has none of a kind, they are left out.
    """
    rewards, sign = rewards.detach(), signs(batch)
    figures = {"accuracy": (sign * (rewards - shift) > 0).float().sum()}
    share = batch.extras["good_share"]
    if 0 < float(share[0]) < 1:
        good, bad = (rewards / share)[sign > 0].sum(), (rewards / (1 - share))[sign < 0].sum()
        figures |= {"good": good, "bad": bad, "lead": good - bad}
    return figures
