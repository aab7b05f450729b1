"""ROUGE through rouge-score (Lin 2004): words or word sequences of the reference found again, as an F-score.

Words are runs of letters and digits; characters of scripts that set no spaces (Chinese, Japanese, Thai …) and Korean
syllables count one by one, which the library's own tokenizer would throw away.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from rouge_score.rouge_scorer import RougeScorer

from tunesmith.evaluate.language import UNSPACED
from tunesmith.evaluate.metrics import Metric

_WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")


class _Words:
    """The tokenizer that rouge-score asks for."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


class Rouge(Metric):
    """How much of the reference's words the answer has, 0 to 1, through rouge-score."""

    variant: Literal["rouge1", "rouge2", "rougeL", "rougeLsum"] = "rougeL"
    """Single words, pairs, or the longest common sequence (`rougeLsum`: line by line)."""

    def score(self, answers: Sequence[str], references: Sequence[str]) -> list[float]:
        scorer = RougeScorer([self.variant], tokenizer=_Words())
        return [scorer.score(r, a)[self.variant].fmeasure for a, r in zip(answers, references, strict=True)]

    def label(self, references: Sequence[str]) -> str:
        return self.variant
