"""Reward modelling on pairs (Bradley-Terry):  loss = - log sigmoid(r(chosen) - r(rejected) - margin).

Ouyang et al., arXiv:2203.02155. The score is read at the last token of each answer by a head of one number, in
transformers' own `…ForSequenceClassification`, which is what is saved.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from tunesmith.models.forest import Batch
from tunesmith.models.heads import HeadSpec
from tunesmith.models.policy import Policy
from tunesmith.objectives._pairs import OfPairs, pair_figures, ranked, sides


class Reward(OfPairs):
    """Learn to score answers so that the preferred one of a pair gets more."""

    margin: Annotated[float, Field(ge=0)] = 0.0
    """By how much the better answer should lead before the loss falls below ln 2."""
    center: Annotated[float, Field(ge=0)] = 0.0
    """Weight of (r(chosen) + r(rejected))^2, which keeps the scores around zero (arXiv:2312.09244)."""

    @property
    def head(self) -> HeadSpec:
        return HeadSpec("score")

    def loss(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        scores = policy.scores(batch)
        chosen, rejected = sides(scores)
        loss = ranked(chosen - rejected - self.margin).sum() + self.center * ((chosen + rejected) ** 2).sum()
        return loss, pair_figures(scores)
