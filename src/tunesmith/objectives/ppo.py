"""Proximal policy optimisation (Schulman et al., arXiv:1707.06347) as it is used on language models (Ziegler et al.,
arXiv:1909.08593; Ouyang et al., arXiv:2203.02155).

    prompts ─▶ answers drawn ─▶ rewards, KL to the reference ─▶ values ─▶ advantages A, returns R ─▶ epochs over them

    ratio = p(token) / p_old(token)
    loss  = mean over tokens of   - min(ratio A, clip(ratio, 1 - c, 1 + c) A)  +  value_weight / 2 * error
    error = max((V - R)^2, (clip(V, V_old - c', V_old + c') - R)^2)

How A and R are found: `_returns.py`. Advantages of a whole step, over all ranks, are whitened: mean 0, deviation 1.
The value V of what stands before a token is read from the model's hidden state there by a linear layer that starts at
zero and is no part of the result. The pull of the reference is in the rewards, at every token; its weight is fixed, or
is steered so that the KL of an answer comes to a target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from tunesmith.core.problem import Problem
from tunesmith.models.forest import Batch, by_row
from tunesmith.models.policy import Policy
from tunesmith.objectives import Losses, Round
from tunesmith.objectives._online import Online, Positive
from tunesmith.objectives._returns import advantages, moments, steered, token_rewards
from tunesmith.objectives._rollout import column, deal, means, questions, trees, with_reference
from tunesmith.objectives._signs import Watch, signs

LEAST = 1e-8
CARRIED = "beta"


class Ppo(Online):
    """Learn from own answers what a reward likes, held near a reference, with a critic that values every token."""

    unit: ClassVar[str] = "tokens"

    answers: Positive = 1
    """Answers drawn to each prompt."""
    epochs: Positive = 4
    """How often the answers of a step are learned from."""
    minibatches: Positive = 1
    """In how many optimizer updates an epoch over them is cut."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """How far a token's probability, divided by what it was when drawn, is followed from 1."""
    clip_values: Annotated[float, Field(gt=0)] | None = 0.2
    """How far a value is followed from what it was at the start of the step. null for as far as it goes."""
    value_weight: Annotated[float, Field(gt=0)] = 0.1
    """Weight of the values' error beside the policy's loss."""
    values: Literal["head", "shared"] = "head"
    """What learns the values: a linear layer over the model's hidden states alone, or with it the model, too."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """What a reward is worth one token earlier."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Below 1, advantages trust the values more and what came of a single answer less."""
    beta: Annotated[float, Field(ge=0)] = 0.05
    """How strongly the model is held to the reference, for each nat; with target_kl only where it begins."""
    target_kl: Annotated[float, Field(gt=0)] | None = None
    """Nats by which answers may differ from the reference, each as a whole; beta is steered to that. Left out: beta
    stays."""
    horizon: Positive = 10_000
    """For target_kl: after so many answers beta has changed by a fifth at most, up or down."""
    reference_model: str | None = None
    """Another model to be held to, by its folder or its id; it must have the same vocabulary. Left out: the model
    itself as it was before training."""
    cut_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Taken off the reward of an answer that `max_tokens` cut before it ended."""

    @model_validator(mode="after")
    def _reference_has_effect(self) -> Self:
        for name in ("reference_model", "target_kl"):
            if getattr(self, name) is not None and self.beta == 0:
                problem = Problem(name, "is set, and with beta 0 nothing is held to a reference", "Set beta above 0")
                raise ValueError(problem) from problem
        return self

    @property
    def scores_reference(self) -> Literal["never", "live", "precomputed"]:
        return "live" if self.beta else "never"

    def equip(self, policy: Policy) -> nn.Module | None:
        super().equip(policy)
        return _critic(policy)

    def count(self, batch: Batch) -> float:
        return float(len(batch.targets))

    def round(self, policy: Policy, batches: Sequence[Batch], seed: int) -> Round:
        groups = self.drawn(policy, questions(batches), self.answers, seed)
        parts = [trees(part, policy) for part in deal(groups, self.minibatches, seed, policy.ranks)]
        beta = policy.carried.get(CARRIED, self.beta)
        made = [[self._valued(policy, batch, beta) for batch in part] for part in parts]
        whole = [batch for part in made for batch in part]
        mean, deviation = moments([batch.extras["advantage"] for batch in whole], policy.ranks)
        ready = [[_whitened(batch, mean, deviation) for batch in part] for part in made]
        columns = {name: column(groups, name) for name in (*self.told(policy), "distinct")}
        figures = {**means(columns, policy.ranks), **_of_tokens(policy, whole), "beta": beta}
        if self.target_kl is not None:
            share = policy.ranks.total(float(sum(batch.answers for batch in whole))) / self.horizon
            policy.carried[CARRIED] = steered(beta, figures["kl_answer"], self.target_kl, share)
        watch = Watch(self.answers, self.weights(policy))
        return Round(ready * self.epochs, figures, signs(figures, policy.carried, watch))

    def loss(self, policy: Policy, batch: Batch) -> Losses:
        states, old, gain = policy.states(batch), batch.extras["old"], batch.extras["advantage"]
        ratio = (policy.logprobs(batch, states=states) - old).exp()
        held = ratio.clamp(1 - self.clip, 1 + self.clip)
        chosen = -torch.minimum(ratio * gain, held * gain)
        error = self._error(_values(policy, states if self.values == "shared" else states.detach()), batch)
        figures = {
            "policy_loss": chosen.sum(),
            "value_loss": error.sum(),
            "clipped": (ratio * gain > held * gain).float().sum(),
        }
        return (chosen + self.value_weight * error).sum(), {name: each.detach() for name, each in figures.items()}

    def _error(self, values: Tensor, batch: Batch) -> Tensor:
        """[M] half the squared error of values, the larger one of that and what it is within the clip."""
        before, wanted = batch.extras["value"], batch.extras["return"]
        error = (values - wanted) ** 2
        if self.clip_values is not None:
            held = before + (values - before).clamp(-self.clip_values, self.clip_values)
            error = torch.maximum(error, (held - wanted) ** 2)
        return error / 2

    def _valued(self, policy: Policy, batch: Batch, beta: float) -> Batch:
        """The batch with what its tokens are worth [M]: old and reference log-probabilities, value, advantage, return.

        Found once for the whole step; advantages are not whitened yet.
        """
        with torch.no_grad(), policy.still():
            states = policy.states(batch)
            old, value = policy.logprobs(batch, states=states), _values(policy, states)
        batch = batch.with_extra("old", old).with_extra("value", value)
        batch = with_reference(policy, batch) if self.beta else batch.with_extra("reference", old)
        rows, worth = batch.targets.row, batch.extras["reward"] - self.cut_penalty * batch.extras["cut"]
        rewards = token_rewards(rows, worth, old - batch.extras["reference"], beta)
        gains = advantages(rewards, value, rows, self.gamma, self.gae_lambda)
        for name, found in {"advantage": gains, "return": gains + value.cpu().double()}.items():
            batch = batch.with_extra(name, found.to(value))
        return batch


def _critic(policy: Policy) -> nn.Linear:
    """The layer that reads values from hidden states; it starts at zero, so that all are worth the same."""
    width = int(policy.model.get_output_embeddings().weight.shape[1])  # type: ignore[union-attr, arg-type]
    critic = nn.Linear(width, 1, device=policy.device, dtype=torch.float32)
    nn.init.zeros_(critic.weight)
    nn.init.zeros_(critic.bias)
    return critic


def _values(policy: Policy, states: Tensor) -> Tensor:
    """[M] the values of states [M, d], in float32."""
    if policy.beside is None:
        raise ValueError("this policy has no critic: `equip` was not called")
    return policy.beside(states.float()).squeeze(-1)


def _whitened(batch: Batch, mean: float, deviation: float) -> Batch:
    return batch.with_extra("advantage", (batch.extras["advantage"] - mean) / (deviation + LEAST))


def _of_tokens(policy: Policy, batches: Sequence[Batch]) -> Mapping[str, float]:
    """Of the tokens of all ranks: KL a token and an answer, entropy, and how much of the returns the values explain."""

    def all_of(each: Callable[[Batch], Tensor]) -> list[Tensor]:
        return [each(batch).double() for batch in batches]

    ranks = policy.ranks
    gaps = all_of(lambda batch: batch.extras["old"] - batch.extras["reference"])
    answers = all_of(lambda batch: by_row(batch, batch.extras["old"] - batch.extras["reference"]))
    errors = all_of(lambda batch: batch.extras["return"] - batch.extras["value"])
    spread = moments(all_of(lambda batch: batch.extras["return"]), ranks)[1]
    return {
        "kl": moments(gaps, ranks)[0],
        "kl_answer": moments(answers, ranks)[0],
        "entropy": -moments(all_of(lambda batch: batch.extras["old"]), ranks)[0],
        "explained_variance": 1 - (moments(errors, ranks)[1] / spread) ** 2 if spread > LEAST else 0.0,
    }
