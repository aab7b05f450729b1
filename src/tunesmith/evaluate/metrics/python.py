"""A metric of your own: one Python function in a file.

    def score(answer: str, reference: str) -> float: ...

The file is run as a program of yours, with all your rights: name only files that you trust.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunesmith.core.own_code import OwnFunction
from tunesmith.evaluate.metrics import Metric


class Python(Metric):
    """A function in a Python file, called with each answer and its reference; larger is better."""

    path: str
    """The Python file."""
    function: str = "score"
    """The function in it: `(answer: str, reference: str) -> float`."""

    def score(self, answers: Sequence[str], references: Sequence[str]) -> list[float]:
        own = self._own()
        function = own.load()
        pairs = zip(answers, references, strict=True)
        return [own.number(function, row, answer, reference) for row, (answer, reference) in enumerate(pairs)]

    def label(self, references: Sequence[str]) -> str:
        return f"{self.function} ({Path(self.path).name})"

    def check(self) -> None:
        self._own().load()

    def _own(self) -> OwnFunction:
        return OwnFunction(self.path, self.function, "metric")
