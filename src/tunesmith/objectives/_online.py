"""What objectives share that learn from answers they draw themselves: how these are drawn, and what they are worth.

    Prompt rows ─▶ questions ─▶ groups of answers (engine, sampling) ─▶ judged (rewards, weights) ─▶ what the loss needs

On validation rows each prompt gets one greedy answer; its loss is the reward with the sign turned, so that the best
weights are those of the highest reward.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, ClassVar, Self, cast

import torch
from pydantic import Field, field_validator, model_validator
from torch import nn

from tunesmith.core.plugins import Member, Plugin
from tunesmith.core.problem import Problem
from tunesmith.core.records import Prompt, Record
from tunesmith.core.run import TrainSpec
from tunesmith.data.encode import Rules
from tunesmith.data.prepare import MAX_TOKENS
from tunesmith.data.store import TokenStore
from tunesmith.generate.engines import Answers, Engine
from tunesmith.generate.sampling import Sampling
from tunesmith.models.forest import Batch
from tunesmith.models.policy import Policy
from tunesmith.objectives import Losses, Objective
from tunesmith.objectives._rollout import Group, Question, draw, questions
from tunesmith.rewards import Asked, Reward
from tunesmith.rewards._sum import Sum, keys_checked

Positive = Annotated[int, Field(gt=0)]


class Drawing(Sampling):
    """How answers are drawn while learning: from the distribution that learns, so temperature 1 and all tokens."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    """1 samples from the model's own distribution, which is the one that learns."""

    @model_validator(mode="after")
    def _from_the_policy(self) -> Self:
        plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
        for name, value in plain.items():
            if getattr(self, name) != value:
                what = f"is {getattr(self, name)}, and answers must be drawn from the distribution that learns"
                problem = Problem(name, what, f"Set it to {value}")
                raise ValueError(problem) from problem
        return self


class Drawn(Objective):
    """An objective that draws answers from the model that learns."""

    sampling: Drawing = Drawing()
    """How answers are drawn."""
    engine: Annotated[Plugin, Member("engine")] = Field(default=cast(Any, "local"), validate_default=True)
    """What draws them, from the weights as they are at that moment."""

    @field_validator("engine")
    @classmethod
    def _draws_from_the_policy(cls, value: Plugin) -> Plugin:
        if not cast(Engine, value).follows:
            what = f"{value.name()} holds weights of its own, which do not learn with the run"
            problem = Problem("", what, "Use local, or vllm where that is installed")
            raise ValueError(problem) from problem
        return value

    def answering(self, policy: Policy) -> Answers:
        """What draws the answers of this policy."""
        if "engine" not in policy.opened:
            engine = cast(Engine, self.engine)
            policy.opened["engine"] = engine.follow(policy.trained, policy.codec, _precision(policy))
        return policy.opened["engine"]

    def answered(self, policy: Policy, asked: Sequence[Question], n: int, seed: int) -> list[Group]:
        """n answers to each question; the draws follow from the seed."""
        sampling = self.sampling.model_copy(update={"seed": seed + self.sampling.seed})
        return draw(self.answering(policy), asked, sampling, n)


class Online(Drawn):
    """An objective that learns from its own answers alone, and has them judged."""

    takes: ClassVar[type[Record]] = Prompt
    unit: ClassVar[str] = "answers"
    online: ClassVar[bool] = True

    rewards: tuple[Annotated[Plugin, Member("reward")], ...] = Field(
        default=cast(Any, ("exact",)), validate_default=True, min_length=1
    )
    """What makes an answer good; several are added up by their weights."""

    @field_validator("rewards", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (str, dict)) else value

    def rules(self, train: TrainSpec) -> Rules:
        room, longest = self.sampling.max_tokens, train.max_tokens or MAX_TOKENS
        if room >= longest:
            raise Problem(
                f"objective.{self.name()}.sampling.max_tokens",
                f"is {room:,}, and train.max_tokens leaves {longest:,} for a prompt and its answer together",
                f"Set it below {longest:,}, or train.max_tokens above {room:,} where the model's context allows it",
            )
        return Rules(self.takes, longest, train.over_long, train.learn, room=room)

    def check_rows(self, rows: TokenStore) -> None:
        keys = [json.loads(rows.row(number).note)["answer"] for number in range(len(rows))]
        places = [str(rows.place(number)) for number in range(len(rows))]
        keys_checked(cast("tuple[Reward, ...]", self.rewards), list(zip(places, keys, strict=True)))

    @property
    def sampled(self) -> int:
        return getattr(self, "answers", 1) * self.sampling.max_tokens

    @property
    def passes(self) -> int:
        return getattr(self, "epochs", 1)

    def equip(self, policy: Policy) -> nn.Module | None:
        _ = self.answering(policy), self.judging(policy)
        return None

    def judging(self, policy: Policy) -> Sum:
        """What says how good answers are."""
        if "rewards" not in policy.opened:
            policy.opened["rewards"] = Sum(cast("tuple[Reward, ...]", self.rewards), policy)
        return policy.opened["rewards"]

    def told(self, policy: Policy) -> tuple[str, ...]:
        """The numbers of an answer whose means are told."""
        parts = self.judging(policy).names
        return ("reward", *(f"reward_{name}" for name in parts if len(parts) > 1), "length", "cut", "empty")

    def weights(self, policy: Policy) -> dict[str, float]:
        """The weight of each reward, by its name."""
        judging = self.judging(policy)
        return {name: reward.weight for name, reward in zip(judging.names, judging.rewards, strict=True)}

    def judged(self, policy: Policy, groups: Sequence[Group]) -> list[Group]:
        """The groups with `reward` of each answer, and `reward_NAME` of each reward."""
        found = self.judging(policy)([asked for group in groups for asked in _asked(group)])
        columns = {"reward": found.totals, **{f"reward_{name}": part for name, part in found.parts.items()}}
        out: list[Group] = []
        start = 0
        for group in groups:
            stop = start + len(group.answers)
            out.append(group.having(**{name: values[start:stop] for name, values in columns.items()}))
            start = stop
        return out

    def drawn(self, policy: Policy, asked: Sequence[Question], n: int, seed: int) -> list[Group]:
        """n answers to each question, judged; the draws follow from the seed."""
        return self.judged(policy, self.answered(policy, asked, n, seed))

    def measure(
        self, policy: Policy, batches: Sequence[Batch], loss: Callable[[Batch], Losses]
    ) -> tuple[dict[str, float], float]:
        greedy = Sampling(max_tokens=self.sampling.max_tokens, stop=self.sampling.stop)
        groups = self.judged(policy, draw(self.answering(policy), questions(batches), greedy, 1))
        sums = {name: sum(group.numbers[name][0] for group in groups) for name in self.told(policy)}
        return {"loss": 0.0 - sums["reward"], **sums}, len(groups)


def _asked(group: Group) -> list[Asked]:
    """The answers of a group as rewards see them."""
    question = group.question
    return [
        Asked(question.ask.messages, answer.text, question.key, len(answer.tokens), answer.ended, question.ask.tools)
        for answer in group.answers
    ]


def _precision(policy: Policy) -> Callable[[], AbstractContextManager[object]]:
    """The number type of products that the policy learns with."""
    if policy.autocast is None:
        return nullcontext
    return lambda: torch.autocast(policy.device.type, dtype=policy.autocast)
