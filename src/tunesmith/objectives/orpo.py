"""Odds-ratio preference optimisation (Hong et al., arXiv:2403.07691): supervised tuning and preference in one, with no
reference.

    p(y)    = exp(mean over tokens of log p)            odds(y) = p(y) / (1 - p(y))
    loss    = - log p(chosen) - beta * log sigmoid(log odds(chosen) - log odds(rejected))

The likelihood is that of the answer given its prompt, as in the paper, a mean over its tokens. The prompt is computed
once for both answers.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from tunesmith.models.forest import Batch, by_row
from tunesmith.models.policy import Policy
from tunesmith.objectives._pairs import OfPairs, answer_lengths, pair_figures, ranked, sides

CERTAIN = -1e-6
"""The log-probability from which on an answer counts as certain: beyond it the odds are no number."""


class Orpo(OfPairs):
    """Learn the better of two answers and to prefer it, at once and without a reference model."""

    beta: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the odds ratio beside the likelihood of the chosen answer (lambda in the paper)."""

    def loss(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs = by_row(batch, policy.logprobs(batch))
        means = logprobs / answer_lengths(batch)
        odds = log_odds(means)
        chosen, rejected = sides(odds)
        likely, _ = sides(means)
        return (self.beta * ranked(chosen - rejected) - likely).sum(), pair_figures(odds, logprobs)


def log_odds(logprobs: Tensor) -> Tensor:
    """log p - log(1 - p) from log p, exact both near 0 and near 1."""
    known = logprobs.clamp(max=CERTAIN)
    return known - torch.where(known > -0.7, torch.log(-torch.expm1(known)), torch.log1p(-torch.exp(known)))
