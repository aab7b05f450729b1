"""REINFORCE with a baseline (Williams 1992), and RLOO, which takes it from the other answers to the same prompt
(Ahmadian et al., arXiv:2402.14740).

    R_i  = reward_i - beta * Σ_t (log p_old(token_t) - log p_ref(token_t))        being near the reference is a reward
    A_i  = R_i - baseline_i,    baseline   leave_one_out   the mean of the other answers' R
                                           mean            the mean of all answers of the step
                                           none            0
    loss = mean over answers of  - min(r A, clip(r, 1 - low, 1 + high) A),     r = p(answer) / p_old(answer)

With one update a step r is 1, and the gradient that of - A log p(answer).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tunesmith.core.problem import Problem
from tunesmith.models.forest import Batch, by_row
from tunesmith.models.policy import Policy, Ranks
from tunesmith.objectives import Losses
from tunesmith.objectives._gradient import PolicyGradient
from tunesmith.objectives._rollout import everywhere, gathered, token_means


class Reinforce(PolicyGradient):
    """Learn from own answers: the better one is than was to be expected, the likelier it becomes."""

    answers: Annotated[int, Field(gt=0)] = 4
    """Answers drawn to each prompt."""
    baseline: Literal["leave_one_out", "mean", "none"] = "leave_one_out"
    """What was to be expected: the mean reward of the prompt's other answers, of all answers of the step, or 0."""
    beta: Annotated[float, Field(ge=0)] = 0.05
    """How much of the reward an answer loses for each unit of log-probability that it has above the reference's."""

    @model_validator(mode="after")
    def _others_to_compare_with(self) -> Self:
        if self.baseline == "leave_one_out" and self.answers < 2:
            what = "is leave_one_out, and one answer to a prompt leaves none to compare it with"
            problem = Problem("baseline", what, "Set answers to 2 or more, or baseline to mean")
            raise ValueError(problem) from problem
        if self.redraws and self.answers < 2:
            problem = Problem("redraws", "is set, and one answer alone is never unequal", "Take it out")
            raise ValueError(problem) from problem
        return self

    @property
    def needs_old(self) -> bool:
        return self.updates > 1 or self.beta > 0

    def worth(self, policy: Policy, rewards: Tensor, batches: Sequence[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
        if not self.beta:
            return rewards, {}
        apart = [by_row(batch, batch.extras["old"] - batch.extras["reference"]) for batch in batches]
        means = [part / batch.extras["length"] for batch, part in zip(batches, apart, strict=True)]
        kept = rewards - self.beta * gathered(batches, apart, rewards)
        return kept, {"kl": gathered(batches, means, rewards)}

    def advantages(self, rewards: Tensor, ranks: Ranks) -> Tensor:
        if self.baseline == "none":
            return rewards
        if self.baseline == "mean":
            return rewards - everywhere(rewards, ranks).mean()
        others = (rewards.sum(dim=1, keepdim=True) - rewards) / (self.answers - 1)
        equal = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
        return (rewards - others).masked_fill(equal, 0.0)  # a mean of equal numbers may miss them by a rounding

    def shares(self, batch: Batch, answers: float, tokens: float) -> Tensor:
        return torch.ones_like(batch.extras["length"])

    def loss(self, policy: Policy, batch: Batch) -> Losses:
        own = policy.logprobs(batch)
        ratio = by_row(batch, own - batch.extras.get("old", own.detach())).exp()
        gain = batch.extras["advantage"]
        held = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        loss = -torch.minimum(ratio * gain, held * gain) * batch.extras["share"]
        clipped = ((ratio * gain) > (held * gain)).float().sum()
        return loss.sum(), {"entropy": -token_means(batch, own.detach()).sum(), "clipped": clipped}
