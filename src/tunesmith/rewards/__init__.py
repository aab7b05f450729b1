"""The contract of rewards: a number for each answer to a prompt, larger is better. One file a reward.

reward (options) ── open(policy) ─▶ judge ── judge(answers) ─▶ a number each
several of them  ── Sum          ─▶ totals, each one's mean as a figure      (`_sum.py`)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from tunesmith.core.plugins import Plugin
from tunesmith.core.records import Message
from tunesmith.models.policy import Policy

_EXCERPT = 60


@dataclass(frozen=True, slots=True)
class Asked:
    """An answer with what it answers.

    messages: the prompt; text: the answer; key: what the answer is checked against, empty where a prompt has none;
    tokens: how long the answer is, its end token among them; ended: `stop`, or `length` where it was cut; tools: those
    that the prompt offers.
    """

    messages: tuple[Message, ...]
    text: str
    key: str = ""
    tokens: int = 0
    ended: str = "stop"
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def question(self) -> str:
        """The last turn of the prompt."""
        return self.messages[-1].content if self.messages else ""


Judge = Callable[[Sequence[Asked]], list[float]]
"""A reward at work: one finite number for each answer, whatever stands beside it."""


class Reward(Plugin):
    """What makes an answer good."""

    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """What its numbers are multiplied by in the sum of all rewards; below 0 they are a penalty."""

    @abstractmethod
    def open(self, beside: Policy | None = None) -> Judge:
        """Make ready what judging needs, once for a run.

        beside: the model that is trained, where there is one.

        Raises:
            Problem: the reward cannot be had as it is set.
        """

    def unfit(self, key: str) -> str | None:
        """Why nothing can be checked against this answer key; None where something can, or no key is needed."""
        return None


def told(row: int, asked: Asked) -> str:
    """Which answer is meant, for a person; row: its number, from 0."""
    question = " ".join(asked.question[: 4 * _EXCERPT].split())
    return f"answer {row + 1} (to {question[:_EXCERPT] + ' …' if len(question) > _EXCERPT else question!r})"
