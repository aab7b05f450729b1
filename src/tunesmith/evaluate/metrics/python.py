"""A metric of your own: one Python function in a file.

    def score(answer: str, reference: str) -> float: ...

The file is run as a program of yours, with all your rights: name only files that you trust.
"""

from __future__ import annotations

import importlib.util
import math
import traceback
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path

from tunesmith.core.problem import Problem, nearest
from tunesmith.evaluate.metrics import Metric


class Python(Metric):
    """A function in a Python file, called with each answer and its reference; larger is better."""

    path: str
    """The Python file."""
    function: str = "score"
    """The function in it: `(answer: str, reference: str) -> float`."""

    def score(self, answers: Sequence[str], references: Sequence[str]) -> list[float]:
        function = self._load()
        return [self._call(function, i, a, r) for i, (a, r) in enumerate(zip(answers, references, strict=True))]

    def label(self, references: Sequence[str]) -> str:
        return f"{self.function} ({Path(self.path).name})"

    def check(self) -> None:
        self._load()

    def _load(self) -> Callable[[str, str], object]:
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise Problem(self.path, "there is no such file", "Check the path of the metric")
        spec = importlib.util.spec_from_file_location(f"tunesmith_metric_{file.stem}", file)
        if spec is None or spec.loader is None:
            raise Problem(self.path, "is not a Python file", "Give a file that ends in .py")
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise self._fault("cannot be loaded", error) from error
        function = getattr(module, self.function, None)
        if not callable(function):
            names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            raise Problem(self.path, f"has no function {self.function!r}", nearest(self.function, names))
        return function

    def _call(self, function: Callable[[str, str], object], row: int, answer: str, reference: str) -> float:
        try:
            value = function(answer, reference)
        except Exception as error:
            raise self._fault(f"{self.function} failed on answer {row + 1}", error) from error
        if isinstance(value, Real) and math.isfinite(value):
            return float(value)
        raise Problem(
            self.path,
            f"{self.function} gave {value!r} for answer {row + 1}, and a score is a finite number",
            "Return a float (or a bool)",
        )

    def _fault(self, what: str, error: Exception) -> Problem:
        line = error.lineno if isinstance(error, SyntaxError) else self._line(error)
        where = f"{self.path}:{line}" if line else self.path
        return Problem(where, f"{what} ({type(error).__name__}: {error})", "Mend the function")

    def _line(self, error: Exception) -> int | None:
        """The last line of the user's own file on the way to a fault."""
        name = Path(self.path).name
        lines = [at.lineno for at in traceback.extract_tb(error.__traceback__) if Path(at.filename).name == name]
        return lines[-1] if lines else None
