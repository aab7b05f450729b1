"""Several rewards at once:  R = Σ w_i r_i,  with each r_i kept by name."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

from tunesmith.core.problem import Problem
from tunesmith.models.policy import Policy
from tunesmith.rewards import Asked, Judge, Reward, told

SHOWN = 3
"""Faulty prompts that are named."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What some answers are worth: the weighted sum of each, and what each reward gave before it was weighted."""

    totals: tuple[float, ...]
    parts: Mapping[str, tuple[float, ...]]

    @property
    def figures(self) -> dict[str, float]:
        """The mean of the sums as `reward`, and that of each reward as `reward_NAME`; nothing for no answers."""
        if not self.totals:
            return {}
        named = {"reward": self.totals, **{f"reward_{name}": values for name, values in self.parts.items()}}
        return {name: sum(values) / len(values) for name, values in named.items()}


class Sum:
    """Rewards at work, together. names: of each; one that is there twice has its number behind it."""

    def __init__(self, rewards: Sequence[Reward], beside: Policy | None = None) -> None:
        """Raises: Problem: as `Reward.open`."""
        self.rewards = tuple(rewards)
        self.names = _names(self.rewards)
        self.judges: tuple[Judge, ...] = tuple(reward.open(beside) for reward in self.rewards)

    def __call__(self, asked: Sequence[Asked]) -> Judged:
        """What some answers are worth.

        Raises:
            Problem: a reward cannot judge one of them, or gives no finite number.
        """
        parts = {name: _checked(name, judge(asked), asked) for name, judge in zip(self.names, self.judges, strict=True)}
        weights = [reward.weight for reward in self.rewards]
        totals = tuple(
            math.fsum(w * value for w, value in zip(weights, row, strict=True))
            for row in zip(*parts.values(), strict=True)
        )
        return Judged(totals if parts else (0.0,) * len(asked), parts)

    def unfit(self, key: str) -> str | None:
        """Why an answer key is none that all rewards can check against, with the name of the one that cannot."""
        reasons = ((name, reward.unfit(key)) for name, reward in zip(self.names, self.rewards, strict=True))
        return next((f"{name}: {reason}" for name, reason in reasons if reason), None)


def keys_checked(rewards: Sequence[Reward], rows: Sequence[tuple[str, str]]) -> None:
    """Refuse prompts, given by place and answer key, that a reward cannot be reckoned for.

    Raises:
        Problem: with the places of the first of them.
    """
    for reward in rewards:
        bad = [(place, reason) for place, key in rows if (reason := reward.unfit(key))]
        if bad:
            shown = "; ".join(f"{place}: {reason}" for place, reason in bad[:SHOWN])
            what = f"cannot judge answers to {len(bad):,} of {len(rows):,} prompts ({shown})"
            raise Problem(f"reward {reward.name()}", what, "Give them such a key, take them out, or use other rewards")


def _names(rewards: Sequence[Reward]) -> tuple[str, ...]:
    seen: Counter[str] = Counter()
    names: list[str] = []
    for reward in rewards:
        seen[reward.name()] += 1
        number = seen[reward.name()]
        names.append(reward.name() if number == 1 else f"{reward.name()}_{number}")
    return tuple(names)


def _checked(name: str, values: Sequence[object], asked: Sequence[Asked]) -> tuple[float, ...]:
    if len(values) != len(asked):
        raise Problem(f"reward {name}", f"gave {len(values)} numbers for {len(asked)} answers", "Give one each")
    for row, (value, one) in enumerate(zip(values, asked, strict=True)):
        if not isinstance(value, Real) or not math.isfinite(value):
            what = f"gave {value!r} for {told(row, one)}, and a reward is a finite number"
            raise Problem(f"reward {name}", what, "Look at what it was asked")
    return tuple(float(value) for value in values)  # type: ignore[arg-type]
