"""Exact match: the answer is the reference, white space aside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from tunesmith.evaluate.figures import Figure, share
from tunesmith.evaluate.metrics import Metric


def normalised(text: str) -> str:
    """The text without white space around it, and every run of it inside as one space."""
    return " ".join(text.split())


class ExactMatch(Metric):
    """The share of answers that equal their reference; white space at the ends and its amount inside do not count."""

    shown: ClassVar[Literal["percent", "number"]] = "percent"

    case: Literal["kept", "ignored"] = "kept"
    """Whether `Yes` and `yes` are different answers."""

    def score(self, answers: Sequence[str], references: Sequence[str]) -> list[float]:
        return [float(self._form(a) == self._form(r)) for a, r in zip(answers, references, strict=True)]

    def figure(self, answers: Sequence[str], references: Sequence[str], seed: int = 0) -> Figure:
        return share(int(sum(self.score(answers, references))), len(answers))

    def _form(self, text: str) -> str:
        return normalised(text) if self.case == "kept" else normalised(text).casefold()
