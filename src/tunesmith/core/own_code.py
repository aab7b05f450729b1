"""A function of the user's own in a Python file: found, called, and its faults told with file and line.

The file is run as a program of theirs, with all their rights: name only files that you trust.
"""

from __future__ import annotations

import importlib.util
import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

from tunesmith.core.problem import Problem, nearest

Function = Callable[..., object]


@dataclass(frozen=True, slots=True)
class OwnFunction:
    """The place of a function that gives a number. what: what it is for, in one word, such as metric."""

    path: str
    name: str
    what: str

    def load(self) -> Function:
        """The function.

        Raises:
            Problem: no such file, no such function in it, or the file fails.
        """
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise Problem(self.path, "there is no such file", f"Check the path of the {self.what}")
        spec = importlib.util.spec_from_file_location(f"tunesmith_{self.what}_{file.stem}", file)
        if spec is None or spec.loader is None:
            raise Problem(self.path, "is not a Python file", "Give a file that ends in .py")
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise self._fault("cannot be loaded", error) from error
        function = getattr(module, self.name, None)
        if not callable(function):
            names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            raise Problem(self.path, f"has no function {self.name!r}", nearest(self.name, names))
        return function

    def number(self, function: Function, row: int, *values: object, **named: object) -> float:
        """What the function gives one answer; row: the answer's number, from 0.

        Raises:
            Problem: it fails, or gives anything but a finite number.
        """
        try:
            value = function(*values, **named)
        except Exception as error:
            raise self._fault(f"{self.name} failed on answer {row + 1}", error) from error
        if isinstance(value, Real) and math.isfinite(value):
            return float(value)
        raise Problem(
            self.path,
            f"{self.name} gave {value!r} for answer {row + 1}, and a {self.what} is a finite number",
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
