"""Kahneman-Tversky optimisation (Ethayarajh et al., arXiv:2402.01306): answers that were found good or bad, one by one.

    reward(y) = beta * (log p(y) - log p_ref(y)),      z = beta * max(0, KL)
    good      good_weight * (1 - sigmoid(reward - z))
    bad        bad_weight * (1 - sigmoid(z - reward))

KL says how far the model has moved on the whole: the mean of log p - log p_ref over answers to other prompts, for the
rows of a step, found before it and without a gradient. Such an answer stands in the tree beside a row's own, and the
prompt is computed once for both:

    prompt ──┬── own answer              learned
             └── a stranger's answer     only for KL
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tunesmith.models.forest import Batch, by_row, keep
from tunesmith.models.policy import Policy
from tunesmith.objectives import Losses, Round
from tunesmith.objectives._rated import OfRated, rated_figures, rewards_of, signs, with_good_share
from tunesmith.objectives._reference import with_reference


class Kto(OfRated):
    """Learn from single answers that were found good or bad."""

    needs_strangers: ClassVar[bool] = True

    good_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of good answers; with few of them raise it, so that good and bad weigh about the same in all."""
    bad_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of bad answers."""

    def round(self, policy: Policy, batches: Sequence[Batch], seed: int) -> Round:
        scored = [with_reference(policy, batch) for batch in batches]
        moved = [_moved(policy, batch) for batch in scored]
        count = policy.ranks.total(sum(len(part) for part in moved))
        kl = max(0.0, policy.ranks.total(sum(float(part.sum()) for part in moved)) / max(count, 1))
        own = with_good_share(policy, [keep(batch, _firsts(batch)) for batch in scored])
        return Round([[batch.with_extra("kl", torch.full_like(batch.values, kl)) for batch in own]], {"kl": kl})

    def loss(self, policy: Policy, batch: Batch) -> Losses:
        rewards, _ = rewards_of(policy, batch, self.beta)
        shift, sign = self.beta * batch.extras["kl"], signs(batch)
        weights = torch.where(sign > 0, self.good_weight, self.bad_weight)
        loss = (weights * (1 - torch.sigmoid(sign * (rewards - shift)))).sum()
        return loss, rated_figures(batch, rewards, shift)


def _firsts(batch: Batch) -> list[int]:
    """The rows' own answers."""
    return [sum(batch.sizes[:row]) for row in range(len(batch.sizes))]


def _moved(policy: Policy, batch: Batch) -> Tensor:
    """[strangers] log p - log p_ref of the answers that belong to other prompts."""
    others = sorted(set(range(batch.answers)) - set(_firsts(batch)))
    if not others:
        return batch.extras["reference"][:0]
    strange = keep(batch, others)
    with torch.no_grad(), policy.still():
        return by_row(strange, policy.logprobs(strange)) - strange.extras["reference"]
