"""Rule-based reward of a right number, as the answers of GSM8K are checked (Cobbe et al., arXiv:2110.14168).

    … so she has 3 * 6 = <<3*6=18>>18 left.     the number after the marker, or where there is no marker,
    #### 18                                     the last number of the answer

    r = 1 if |number - key| <= tolerance * |key| else 0

Numbers are compared as fractions, so that 0.5, .50 and 1/2 are one number, and so are 1,200 and 1200.00.
"""

from __future__ import annotations

import re
from collections import deque
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field

from tunesmith.rewards import Asked
from tunesmith.rewards._rule import Rule

_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w.)\]])[-+\u2212])?[$€£¥]?(?P<top>{_WHOLE}(?:\.\d+)?|\.\d+)"
    rf"(?:\s?/\s?(?P<bottom>{_WHOLE}))?\s?(?P<percent>[%\uff05])?"
)
_LONGEST = 1000
"""Digits of a number; what is longer is no answer to anything, and would take long to compare."""


class Number(Rule):
    """1 for an answer whose number is that of the key, 0 for any other; a key may be a whole GSM8K solution."""

    marker: str = "####"
    """What stands before the number that counts, in answers and keys that have it."""
    unmarked: Literal["last", "wrong"] = "last"
    """An answer without the marker: its last number counts, or it is wrong whatever it says."""
    percent: Literal["dropped", "hundredths"] = "dropped"
    """50% as the number 50, or as 1/2."""
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """How far a number may be from the key, as a share of the key."""

    def value(self, asked: Asked) -> float:
        found, key = self._read(asked.text, self.unmarked == "last"), self._read(asked.key, True)
        if found is None or key is None:
            return 0.0
        return float(abs(found - key) <= Fraction(self.tolerance) * abs(key))

    def unfit(self, key: str) -> str | None:
        return "there is no number in the answer key" if self._read(key, True) is None else None

    def _read(self, text: str, unmarked: bool) -> Fraction | None:
        """The number that counts in a text; unmarked: whether one counts without the marker before it."""
        marked = bool(self.marker) and self.marker in text
        if not marked and not unmarked:
            return None
        last = deque(_NUMBER.finditer(text.rpartition(self.marker)[2] if marked else text), maxlen=1)
        return self._fraction(last[0]) if last else None

    def _fraction(self, found: re.Match[str]) -> Fraction | None:
        top, bottom = ((found[part] or "1").replace(",", "") for part in ("top", "bottom"))
        if len(top) + len(bottom) > _LONGEST or not int(bottom):
            return None
        value = Fraction(top) / int(bottom)
        if found["sign"] not in (None, "+"):
            value = -value
        return value / 100 if found["percent"] and self.percent == "hundredths" else value
