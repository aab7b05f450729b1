"""Rule-based reward of a right answer:  r = 1 if answer = key else 0  (as in DeepSeek-R1, arXiv:2501.12948)."""

from __future__ import annotations

import unicodedata
from typing import Literal

from tunesmith.rewards import Asked
from tunesmith.rewards._rule import Rule


class Exact(Rule):
    """1 for an answer that is the key, 0 for any other; white space around both is left out."""

    ignore: tuple[Literal["case", "spaces", "punctuation"], ...] = ()
    """What may differ: `case`; `spaces`, how much white space stands between words; `punctuation` at both ends."""

    def value(self, asked: Asked) -> float:
        return float(self._plain(asked.text) == self._plain(asked.key))

    def unfit(self, key: str) -> str | None:
        return None if self._plain(key) else "the answer key is empty"

    def _plain(self, text: str) -> str:
        if "case" in self.ignore:
            text = text.casefold()
        if "spaces" in self.ignore:
            text = " ".join(text.split())
        return _bare(text) if "punctuation" in self.ignore else text.strip()


def _bare(text: str) -> str:
    """The text without punctuation and white space at its ends."""
    kept = [place for place, letter in enumerate(text) if not _edge(letter)]
    return text[kept[0] : kept[-1] + 1] if kept else ""


def _edge(letter: str) -> bool:
    return letter.isspace() or unicodedata.category(letter).startswith("P")
