"""Policy gradient over rollouts: what `grpo` and `reinforce` share.

    groups [G, n] ─▶ rewards ─▶ advantages [G, n] ─▶ dealt to updates ─▶ trees ─▶ epochs over them

How much an answer counts in the loss of its update is a number of its own (`share` [R]), found over the whole update,
so the loss stays a sum over answers, divided by their number.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tunesmith.core.problem import Problem
from tunesmith.models.forest import Batch
from tunesmith.models.policy import Policy, Ranks
from tunesmith.objectives import Round
from tunesmith.objectives._online import Online, Positive
from tunesmith.objectives._rollout import (
    Group,
    Question,
    column,
    deal,
    gathered,
    means,
    numbered,
    placed,
    questions,
    token_means,
    trees,
    with_old,
    with_reference,
)
from tunesmith.objectives._signs import Watch, signs

REDRAW = 1 << 40
"""How far apart the seeds of draws and of draws anew are."""


class PolicyGradient(Online):
    """An objective whose answers are weighed by how much better they are than others."""

    answers: Positive = 8
    """Answers drawn to each prompt."""
    epochs: Positive = 1
    """How often the answers of a step are learned from."""
    minibatches: Positive = 1
    """In how many optimizer updates an epoch over them is cut."""
    clip_low: Annotated[float, Field(gt=0, le=1)] = 0.2
    """How far below 1 an answer's probability, divided by what it was when drawn, is followed; matters from the second
    update of a step on."""
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    """How far above 1 it is followed; larger lets unlikely tokens rise (0.28 in DAPO)."""
    reference_model: str | None = None
    """Another model to be held to, by its folder or its id; it must have the same vocabulary. Left out: the model
    itself as it was before training."""
    redraws: Annotated[int, Field(ge=0)] = 0
    """How often a prompt whose answers are all worth the same gets new ones, since nothing follows from these."""
    cut_answers: Literal["learn", "mask"] = "learn"
    """What becomes of answers that `max_tokens` cut: they are learned from as they are, or have no say."""

    @model_validator(mode="after")
    def _reference_has_effect(self) -> Self:
        if self.reference_model is not None and self.held == 0:
            problem = Problem("reference_model", "is set, and with beta 0 nothing is held to it", "Set beta above 0")
            raise ValueError(problem) from problem
        return self

    @property
    def held(self) -> float:
        """How strongly the model is held to the reference."""
        return getattr(self, "beta", 0.0)

    @property
    def scores_reference(self) -> Literal["never", "live", "precomputed"]:
        return "live" if self.held else "never"

    @property
    def updates(self) -> int:
        """The most updates that a step has."""
        return self.epochs * self.minibatches

    @property
    def needs_old(self) -> bool:
        """Whether the log-probabilities must be kept as they are before the first update."""
        return self.updates > 1

    @abstractmethod
    def advantages(self, rewards: Tensor, ranks: Ranks) -> Tensor:
        """How much better each answer is than was to be expected [G, n], from the rewards of this rank's groups."""

    @abstractmethod
    def shares(self, batch: Batch, answers: float, tokens: float) -> Tensor:
        """[R] how much a token of each answer counts; answers, tokens: of the whole update, over all ranks."""

    def worth(self, policy: Policy, rewards: Tensor, batches: Sequence[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
        """The rewards [A] of this rank's answers as they are learned from, and further numbers of each by name."""
        return rewards, {}

    def count(self, batch: Batch) -> float:
        return float(batch.answers)

    def round(self, policy: Policy, batches: Sequence[Batch], seed: int) -> Round:
        groups = self._groups(policy, questions(batches), seed)
        parts = deal(groups, self.minibatches, seed, policy.ranks)
        made = [[self._scored(policy, batch) for batch in trees(part, policy)] for part in parts]
        whole = [batch for part in made for batch in part]
        rewards, more = self.worth(policy, column(groups, "reward"), whole)
        if self.needs_old:
            more["entropy"] = gathered(whole, [-token_means(batch, batch.extras["old"]) for batch in whole], rewards)
        gains = self.advantages(rewards.view(len(groups), self.answers), policy.ranks).flatten()
        ready = [self._weighed(policy, [placed(batch, "advantage", gains) for batch in part]) for part in made]
        figures = self._figures(policy, groups, more)
        watch = Watch(self.answers, self.weights(policy))
        return Round(ready * self.epochs, figures, signs(figures, policy.carried, watch))

    def _groups(self, policy: Policy, asked: Sequence[Question], seed: int) -> list[Group]:
        """A group of judged answers to each question; those worth the same all are drawn again, as often as is set."""
        groups = self.drawn(policy, asked, self.answers, seed)
        for turn in range(1, self.redraws + 1):
            again = [at for at, group in enumerate(groups) if _equal(group)]
            fresh = self.drawn(policy, [groups[at].question for at in again], self.answers, seed + turn * REDRAW)
            for at, group in zip(again, fresh, strict=True):
                groups[at] = group
        return numbered([group.having(equal=[float(_equal(group))] * self.answers) for group in groups])

    def _scored(self, policy: Policy, batch: Batch) -> Batch:
        """The batch with the log-probabilities that its loss, or its reward, is reckoned from."""
        batch = with_old(policy, batch) if self.needs_old else batch
        return with_reference(policy, batch) if self.held else batch

    def _weighed(self, policy: Policy, batches: Sequence[Batch]) -> list[Batch]:
        """The batches of an update with the share of each answer."""
        taken = [self._taken(batch) for batch in batches]
        answers = policy.ranks.total(sum(batch.answers for batch in batches))
        tokens = policy.ranks.total(
            sum(float((batch.extras["length"] * some).sum()) for batch, some in zip(batches, taken, strict=True))
        )
        return [
            batch.with_extra("share", some * self.shares(batch, answers, max(tokens, 1.0)))
            for batch, some in zip(batches, taken, strict=True)
        ]

    def _taken(self, batch: Batch) -> Tensor:
        """[R] 1 for answers that are learned from, 0 for others."""
        cut = batch.extras["cut"]
        return 1 - cut if self.cut_answers == "mask" else torch.ones_like(cut)

    def _figures(self, policy: Policy, groups: Sequence[Group], more: dict[str, Tensor]) -> dict[str, float]:
        names = (*self.told(policy), "distinct", "equal")
        return means({name: column(groups, name) for name in names} | more, policy.ranks)


def _equal(group: Group) -> bool:
    rewards = group.numbers["reward"]
    return max(rewards) == min(rewards)
