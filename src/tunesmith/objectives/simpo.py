"""Simple preference optimisation (Meng et al., arXiv:2405.14734): mean log-probabilities as rewards, and no
reference.

    reward(y) = beta * mean over tokens of log p
    loss      = - log sigmoid(reward(chosen) - reward(rejected) - gamma)

With `sft_weight` it is CPO-SimPO, which adds - log p(chosen) per token. The prompt is computed once for both answers.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from tunesmith.models.forest import Batch, by_row
from tunesmith.models.policy import Policy
from tunesmith.objectives._pairs import OfPairs, answer_lengths, pair_figures, ranked, sides


class Simpo(OfPairs):
    """Learn to prefer the better of two answers by their likelihood per token, without a reference model."""

    beta: Annotated[float, Field(gt=0)] = 2.0
    """Scale of the rewards; large makes the loss care about smaller differences."""
    gamma: Annotated[float, Field(ge=0)] = 1.0
    """By how much the better answer's reward should lead; about half of beta is usual."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs that are taken to be the wrong way round."""
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the chosen answer's own likelihood beside the pair (above 0 this is CPO-SimPO)."""

    def loss(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs = by_row(batch, policy.logprobs(batch))
        means = logprobs / answer_lengths(batch)
        chosen, rejected = sides(means)
        lead = self.beta * (chosen - rejected) - self.gamma
        loss = (ranked(lead, self.label_smoothing) - self.sft_weight * chosen).sum()
        return loss, pair_figures(self.beta * means, logprobs)
