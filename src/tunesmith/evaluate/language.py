"""Which language a set of texts is in, as far as metrics care: by the scripts of its letters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

SCRIPTS = {
    "ja": r"\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f",
    "ko": r"\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "zh": r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
    "th": r"\u0e00-\u0e7f",
    "lo": r"\u0e80-\u0eff",
    "my": r"\u1000-\u109f",
    "km": r"\u1780-\u17ff",
}
"""Scripts whose words are not (all) set apart by spaces, by the language that stands for each."""

UNSPACED = "".join(SCRIPTS.values())
"""Their characters, as the inside of a regular expression's set."""

ENOUGH = 0.1
"""Share of letters in a script that makes a text count as written in it."""

_COUNTERS = {language: re.compile(f"[{script}]") for language, script in SCRIPTS.items()}
_LETTER = re.compile(r"[^\W\d_]")
SAMPLE_CHARACTERS = 200_000


def language_of(texts: Iterable[str]) -> str:
    """`zh`, `ja`, `ko`, `th`, `lo`, `my`, `km`, or `spaced` for everything that sets its words apart.

    Japanese is told by its kana, since it shares its other characters with Chinese.
    """
    sample = "".join(_first(texts))
    letters = len(_LETTER.findall(sample))
    if not letters:
        return "spaced"
    for language, counter in _COUNTERS.items():
        if len(counter.findall(sample)) >= ENOUGH * letters:
            return language
    return "spaced"


def _first(texts: Iterable[str]) -> Iterator[str]:
    taken = 0
    for text in texts:
        if taken >= SAMPLE_CHARACTERS:
            return
        yield text[: SAMPLE_CHARACTERS - taken]
        taken += len(text)
