"""What BLEU and chrF have in common: the figure of a whole set through sacrebleu, and its tokenizer by language."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import nan
from typing import Any

import numpy as np

from tunesmith.evaluate.figures import Figure, bootstrap
from tunesmith.evaluate.language import language_of


def corpus_figure(metric: Any, answers: Sequence[str], references: Sequence[str], seed: int = 0) -> Figure:
    """The score of all answers together, 0 to 100, with a bootstrap interval over rows.

    metric: a metric of sacrebleu. Its statistics are kept a row and added up for each draw, as sacrebleu's own
    bootstrap does, which takes its seed from the environment and stops with a TypeError on some chrF scores.
    """
    if not answers:
        return Figure(nan, nan, nan, 0)
    stats = np.array(metric._extract_corpus_statistics(list(answers), [list(references)]), dtype=np.float64)
    return bootstrap(len(stats), lambda rows: float(metric._compute_score_from_stats(stats[rows].sum(0)).score), seed)


@lru_cache(maxsize=8)
def tokenizer_for(references: tuple[str, ...]) -> str:
    """The sacrebleu tokenizer for the language of references; each of these works without a further package."""
    language = language_of(references)
    if language == "spaced":
        return "13a"
    return "zh" if language == "zh" else "char"
