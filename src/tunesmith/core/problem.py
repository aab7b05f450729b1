"""Faults that a person can mend: where, what, and what to do.

A `Problem` is shown as one paragraph and ends the program with status 2. Any other exception is a bug of
tunesmith and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class Problem(Exception):
    """One fault in what a person gave us, or in the machine, with the way out."""

    def __init__(self, where: str, what: str, hint: str = "") -> None:
        super().__init__(where, what, hint)
        self.where = where
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {_sentence(self.what)}"
        return f"{text} {_sentence(self.hint)}" if self.hint else text


class Problems(Problem):
    """Several faults of one thing, reported together so that they can be mended together."""

    def __init__(self, where: str, parts: Sequence[Problem]) -> None:
        super().__init__(where, f"{len(parts)} faults")
        self.parts = tuple(parts)

    def __str__(self) -> str:
        lines = [f"{self.where}: {len(self.parts)} faults."]
        return "\n".join(lines + [f"  * {part}" for part in self.parts])


def raise_all(where: str, found: Iterable[Problem]) -> None:
    """Raise what was found: nothing for none, the fault itself for one, `Problems` for more."""
    parts = list(found)
    if len(parts) == 1:
        raise parts[0]
    if parts:
        raise Problems(where, parts)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the closest of the known words, or lists them all."""
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Known: {', '.join(choices)}." if choices else "Nothing is allowed here."


def missing_extra(extra: str, package: str) -> Problem:
    """The fault of an optional package that is not installed, with its install line."""
    return Problem(
        f"package {package}",
        "is not installed, and this choice needs it",
        f'Install it with: pip install "tunesmith[{extra}]"',
    )


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "?", "!", ":", '"', "`")) else text + "."
