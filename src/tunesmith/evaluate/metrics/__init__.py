"""The contract of metrics: a number for answers against references. One file a metric."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from tunesmith.core.plugins import Plugin


class Metric(Plugin):
    """One way to score answers against references."""

    @abstractmethod
    def score(self, answers: Sequence[str], references: Sequence[str]) -> list[float]:
        """A number for each answer; the mean over all, with its interval, is what is reported."""

    def corpus(self, answers: Sequence[str], references: Sequence[str]) -> float | None:
        """The corpus-level figure where the metric is not a mean (BLEU); None where it is."""
        return None
