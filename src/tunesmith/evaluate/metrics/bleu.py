"""BLEU through sacrebleu (Papineni et al. 2002; Post 2018): n-gram precision with a penalty for short answers.

    BLEU = min(1, exp(1 - r/c)) · (p₁ p₂ p₃ p₄)^¼

It is a figure of the whole set, not a mean over answers; answers by themselves are scored with the same formula
and effective order, to sort them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from sacrebleu.metrics.bleu import BLEU

from tunesmith.evaluate.figures import Figure
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.sacre import corpus_figure, tokenizer_for

Tokenizer = Literal["auto", "13a", "intl", "zh", "char", "none"]


class Bleu(Metric):
    """N-gram overlap of all answers with their references, 0 to 100, through sacrebleu."""

    tokenize: Tokenizer = "auto"
    """How text is cut into words. `auto` looks at the references: `zh` for Chinese, `char` for other languages
    written without spaces and for Korean, else `13a`, sacrebleu's default."""
    lowercase: bool = False
    """Compare without regard to case."""

    def score(self, answers: Sequence[str], references: Sequence[str]) -> list[float]:
        metric = self._metric(references, effective_order=True)
        return [metric.sentence_score(a, [r]).score for a, r in zip(answers, references, strict=True)]

    def figure(self, answers: Sequence[str], references: Sequence[str], seed: int = 0) -> Figure:
        return corpus_figure(self._metric(references), answers, references, seed)

    def label(self, references: Sequence[str]) -> str:
        return f"bleu (tokens: {self._tokenizer(references)})"

    def _metric(self, references: Sequence[str], **options: Any) -> BLEU:
        return BLEU(tokenize=self._tokenizer(references), lowercase=self.lowercase, force=True, **options)

    def _tokenizer(self, references: Sequence[str]) -> str:
        return tokenizer_for(tuple(references)) if self.tokenize == "auto" else self.tokenize
