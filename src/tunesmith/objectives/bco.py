"""Binary classifier optimisation (Jung et al., arXiv:2404.04656): a classifier of good and bad answers, whose logit is
the implied reward.

    reward(y) = beta * (log p(y) - log p_ref(y))
    good      - log sigmoid(reward - delta)
    bad       - log sigmoid(delta - reward)

delta is the mean of all rewards so far, of this step's too; it is found before the step, without a gradient, and goes
into checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from tunesmith.models.forest import Batch
from tunesmith.models.policy import Policy
from tunesmith.objectives import Losses, Round
from tunesmith.objectives._rated import OfRated, rated_figures, rewards_of, signs, with_good_share
from tunesmith.objectives._reference import with_reference

MEAN, SEEN = "bco_mean_reward", "bco_rewards_seen"
"""What is carried from step to step."""


class Bco(OfRated):
    """Learn from single answers that were found good or bad, as a classifier."""

    def round(self, policy: Policy, batches: Sequence[Batch], seed: int) -> Round:
        batches = with_good_share(policy, [with_reference(policy, batch) for batch in batches])
        if policy.trained.training:  # validation is judged by what was learned from, and leaves it alone
            self._take_in(policy, batches)
        delta = policy.carried.get(MEAN, 0.0)
        shifted = [batch.with_extra("delta", torch.full_like(batch.values, delta)) for batch in batches]
        return Round([shifted], {"delta": delta})

    def _take_in(self, policy: Policy, batches: Sequence[Batch]) -> None:
        """Add the rewards of a step to the mean of all."""
        with torch.no_grad(), policy.still():
            total = policy.ranks.total(sum(float(rewards_of(policy, batch, self.beta)[0].sum()) for batch in batches))
        count = policy.ranks.total(sum(batch.answers for batch in batches))
        before, seen = policy.carried.get(MEAN, 0.0), policy.carried.get(SEEN, 0.0)
        policy.carried |= {MEAN: (before * seen + total) / max(seen + count, 1), SEEN: seen + count}

    def loss(self, policy: Policy, batch: Batch) -> Losses:
        rewards, _ = rewards_of(policy, batch, self.beta)
        delta = batch.extras["delta"]
        return -F.logsigmoid(signs(batch) * (rewards - delta)).sum(), rated_figures(batch, rewards, delta)
