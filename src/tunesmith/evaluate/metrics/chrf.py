"""chrF through sacrebleu (Popović 2015, 2017): F-score of character n-grams, for any language, without a tokenizer.

    chrF = (1 + β²) · precision · recall / (β² · precision + recall),   β = 2

A figure of the whole set, as BLEU is; with word n-grams added (`word_order: 2`) it is chrF++.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from sacrebleu.metrics.chrf import CHRF

from tunesmith.evaluate.figures import Figure
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.sacre import corpus_figure


class Chrf(Metric):
    """Overlap of characters of all answers with their references, 0 to 100, through sacrebleu."""

    char_order: Annotated[int, Field(ge=1, le=10)] = 6
    """The longest character n-gram."""
    word_order: Annotated[int, Field(ge=0, le=4)] = 0
    """The longest word n-gram; 2 makes it chrF++."""

    def score(self, answers: Sequence[str], references: Sequence[str]) -> list[float]:
        metric = self._metric()
        return [metric.sentence_score(a, [r]).score for a, r in zip(answers, references, strict=True)]

    def figure(self, answers: Sequence[str], references: Sequence[str], seed: int = 0) -> Figure:
        return corpus_figure(self._metric(), answers, references, seed)

    def label(self, references: Sequence[str]) -> str:
        return f"chrf{'+' * self.word_order}"

    def _metric(self) -> CHRF:
        return CHRF(char_order=self.char_order, word_order=self.word_order)
