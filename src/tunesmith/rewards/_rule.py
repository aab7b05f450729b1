"""Rewards that follow from one answer alone, by a rule, and need nothing else to be judged by."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from tunesmith.core.problem import Problem
from tunesmith.models.policy import Policy
from tunesmith.rewards import Asked, Judge, Reward, told


class Rule(Reward):
    """A reward that follows from each answer alone, by a rule."""

    @abstractmethod
    def value(self, asked: Asked) -> float:
        """What one answer is worth; its key is one that can be checked against."""

    def open(self, beside: Policy | None = None) -> Judge:
        return self._judge

    def _judge(self, asked: Sequence[Asked]) -> list[float]:
        for row, one in enumerate(asked):
            if reason := self.unfit(one.key):
                raise Problem(f"reward {self.name()}", f"{told(row, one)}: {reason}", "Give its prompt another key")
        return [self.value(one) for one in asked]
