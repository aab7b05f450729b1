"""What BLEU and chrF have in common: the figure of a whole set through sacrebleu, and its tokenizer by language."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import nan
from typing import Any

from tunesmith.evaluate.figures import DRAWS, Figure
from tunesmith.evaluate.language import language_of


def corpus_figure(metric: Any, answers: Sequence[str], references: Sequence[str]) -> Figure:
    """The score of all answers together, 0 to 100, with sacrebleu's own bootstrap interval over rows.

    metric: a metric of sacrebleu. Its draws have a fixed seed, so the interval is the same every time.
    """
    if not answers:
        return Figure(nan, nan, nan, 0)
    found = metric.corpus_score(list(answers), [list(references)], n_bootstrap=DRAWS)
    middle, half = found._mean, found._ci
    return Figure(found.score, max(0.0, middle - half), min(100.0, middle + half), len(answers))


@lru_cache(maxsize=8)
def tokenizer_for(references: tuple[str, ...]) -> str:
    """The sacrebleu tokenizer for the language of references; each of these works without a further package."""
    language = language_of(references)
    if language == "spaced":
        return "13a"
    return "zh" if language == "zh" else "char"
