"""The contract of metrics: a number for answers against references, larger is better. One file a metric."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from tunesmith.core.plugins import Plugin
from tunesmith.evaluate.figures import Figure, mean


class Metric(Plugin):
    """One way to score answers against references."""

    shown: ClassVar[Literal["percent", "number"]] = "number"
    """How a value is shown to people; `percent` for shares."""

    @abstractmethod
    def score(self, answers: Sequence[str], references: Sequence[str]) -> list[float]:
        """A number for each answer."""

    def figure(self, answers: Sequence[str], references: Sequence[str], seed: int = 0) -> Figure:
        """What is reported for all answers: the mean with its interval, unless the metric is no mean (BLEU)."""
        return mean(self.score(answers, references), seed)

    def check(self) -> None:
        """Find faults of the options that need no answers, before anything long is begun.

        Raises:
            Problem: the metric cannot be used as it is set.
        """

    def label(self, references: Sequence[str]) -> str:
        """The metric's name with what was chosen for these references, such as a tokenizer."""
        return self.name()
