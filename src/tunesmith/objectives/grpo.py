"""Group relative policy optimisation (Shao et al., arXiv:2402.03300), with what DAPO, Dr. GRPO and GSPO changed in it.

    A_i   = (R_i - mean R) / std R                                over the n answers of a prompt
    r_t   = p(token_t) / p_old(token_t)
    loss  = mean over answers of  Σ_t w ( - min(r_t A, clip(r_t, 1 - low, 1 + high) A) + beta * k3_t )
    k3_t  = p_ref / p - log(p_ref / p) - 1                        an estimate of the KL divergence that is never below 0
            times r_t where `kl` is unbiased: its gradient is then right too (DeepSeek-V3.2, arXiv:2512.02556)

    normalise  answer    w = 1 / tokens of the answer             GRPO: short answers weigh more per token
               token     w = answers / tokens of the update       DAPO (arXiv:2503.14476): each token the same
               constant  w = 1 / sampling.max_tokens              Dr. GRPO (arXiv:2503.20783): no bias by length
    scale      std, none (Dr. GRPO), batch (over all answers of the step)
    ratio      token, or sequence: r = the mean ratio of the answer's tokens, in the geometric sense (GSPO,
               arXiv:2507.18071)

DAPO is `normalise: token, clip_high: 0.28, redraws: 2, cut_answers: mask`. Beta is 0 unless set: with answers that
can be checked, being held to the reference has shown no gain (DAPO, Dr. GRPO), and it costs a pass over each answer.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tunesmith.core.problem import Problem
from tunesmith.models.forest import Batch, by_row
from tunesmith.models.policy import Policy, Ranks
from tunesmith.objectives import Losses
from tunesmith.objectives._gradient import PolicyGradient
from tunesmith.objectives._rollout import everywhere, token_means

LEAST_STD = 1e-4


class Grpo(PolicyGradient):
    """Learn from which of several own answers to a prompt are better, by rewards that can be reckoned."""

    answers: Annotated[int, Field(ge=2)] = 8
    """Answers drawn to each prompt; they are compared with each other."""
    normalise: Literal["answer", "token", "constant"] = "token"
    """What makes answers of different lengths comparable: the mean over each answer's tokens, over all tokens of the
    update, or a sum divided by `sampling.max_tokens`."""
    scale: Literal["std", "none", "batch"] = "std"
    """What advantages are divided by: the rewards' standard deviation in the group, nothing, or that of the step."""
    ratio: Literal["token", "sequence"] = "token"
    """Whether each token has a ratio to the time it was drawn, or the answer has one for all of them."""
    beta: Annotated[float, Field(ge=0)] = 0.0
    """How strongly the model is held to the reference; 0 leaves it free, 0.04 is the value of the first paper."""
    kl: Literal["unbiased", "plain"] = "unbiased"
    """How the distance to the reference is estimated: weighed by each token's ratio, so that its gradient is that of
    the KL divergence, or as in the first paper."""

    @model_validator(mode="after")
    def _kl_has_effect(self) -> Self:
        if self.kl == "plain" and self.beta == 0:
            problem = Problem(
                "kl", "is plain, and with beta 0 there is no such term", "Set beta above 0, or take it out"
            )
            raise ValueError(problem) from problem
        return self

    def advantages(self, rewards: Tensor, ranks: Ranks) -> Tensor:
        lead = rewards - rewards.mean(dim=1, keepdim=True)
        equal = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
        lead = lead.masked_fill(equal, 0.0)  # a mean of equal numbers may miss them by a rounding
        if self.scale == "none":
            return lead
        if self.scale == "batch":
            return lead / (everywhere(rewards, ranks).std() + LEAST_STD)
        std = (lead.square().sum(dim=1, keepdim=True) / (self.answers - 1)).sqrt()
        return lead / (std + LEAST_STD)

    def shares(self, batch: Batch, answers: float, tokens: float) -> Tensor:
        lengths = batch.extras["length"]
        if self.normalise == "answer":
            return 1 / lengths
        weight = answers / tokens if self.normalise == "token" else 1 / self.sampling.max_tokens
        return torch.full_like(lengths, weight)

    def loss(self, policy: Policy, batch: Batch) -> Losses:
        own, row = policy.logprobs(batch), batch.targets.row
        moved = own - batch.extras.get("old", own.detach())
        ratio = (token_means(batch, moved)[row] if self.ratio == "sequence" else moved).exp()
        gain = batch.extras["advantage"][row]
        held = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        loss = -torch.minimum(ratio * gain, held * gain)
        figures = {"entropy": -own, "clipped": ((ratio * gain) > (held * gain)).float()}
        if self.beta:
            apart = batch.extras["reference"] - own
            figures["kl"] = apart.exp() - apart - 1
            loss = loss + self.beta * figures["kl"] * (moved.exp() if self.kl == "unbiased" else 1)
        told = {name: token_means(batch, value.detach()).sum() for name, value in figures.items()}
        return (by_row(batch, loss) * batch.extras["share"]).sum(), told
