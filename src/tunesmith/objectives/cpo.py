"""Contrastive preference optimisation (Xu et al., arXiv:2401.08417): DPO against a uniform reference, beside the
likelihood of the better answer.

    loss = - log sigmoid(beta * [log p(chosen) - log p(rejected)]) - sft_weight * log p(chosen) per token

With rewards per token and a margin it is CPO-SimPO: `simpo` with `sft_weight`. The prompt is computed once for both
answers.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from tunesmith.models.forest import Batch, by_row
from tunesmith.models.policy import Policy
from tunesmith.objectives._pairs import OfPairs, answer_lengths, pair_figures, ranked, sides


class Cpo(OfPairs):
    """Learn the better of two answers and to find it likelier, without a reference model."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    """Scale of the rewards; large makes the loss care about smaller differences."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs that are taken to be the wrong way round."""
    sft_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the chosen answer's own likelihood beside the pair."""

    def loss(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs = by_row(batch, policy.logprobs(batch))
        chosen, rejected = sides(self.beta * logprobs)
        likely, _ = sides(logprobs / answer_lengths(batch))
        loss = (ranked(chosen - rejected, self.label_smoothing) - self.sft_weight * likely).sum()
        return loss, pair_figures(self.beta * logprobs, logprobs)
