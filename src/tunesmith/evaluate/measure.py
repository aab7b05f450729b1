"""Perplexity of what is learned: how surprised a model is by the right next tokens.

    perplexity    = exp( - Σ log p(token) / number of tokens )
    bits per byte = - Σ log p(token) / (ln 2 · number of bytes)

Sums go over all target tokens of all rows (so long rows weigh more than short ones), each token counted once whatever
its weight in training. Bytes are those of the learned text in UTF-8, so models with other tokenizers can be compared;
end tokens are among the tokens and have no bytes. The first token of a plain text has nothing before it and is not
counted, unless the tokenizer puts a token before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.rows import TokenRow
from tunesmith.data.tokenizer import Codec
from tunesmith.evaluate.figures import Figure, bootstrap
from tunesmith.evaluate.outcome import Measure, Outcome
from tunesmith.evaluate.scoring import Scorer, learned_tokens, unweighted

PERPLEXITY = "perplexity"
BITS = "bits per byte"


def perplexity(scorer: Scorer, codec: Codec, rows: Sequence[TokenRow], seed: int = 0) -> Outcome:
    """Perplexity and bits per byte of rows, each with its interval over rows."""
    plain_rows = [unweighted(row) for row in rows]
    sums = np.array([part.sum() for part in scorer.logprobs(plain_rows, PERPLEXITY)])
    tokens = np.array([row.learned for row in plain_rows], dtype=np.float64)
    size = np.array([len(codec.decode(learned_tokens(row)).encode()) for row in plain_rows], dtype=np.float64)
    measures = (
        Measure(PERPLEXITY, exp_rate(sums, tokens, seed), better="lower", gains=sums),
        Measure(BITS, rate(-sums / math.log(2), size, seed), better="lower", gains=sums),
    )
    return Outcome(measures, scores=sums / np.maximum(tokens, 1))


def exp_rate(sums: NDArray[np.float64], counts: NDArray[np.float64], seed: int = 0) -> Figure:
    """exp(-Σ sums / Σ counts) over rows."""

    def statistic(rows: NDArray[np.int64]) -> float:
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            return float(np.exp(-sums[rows].sum() / counts[rows].sum()))

    return bootstrap(len(sums), statistic, seed)


def rate(sums: NDArray[np.float64], counts: NDArray[np.float64], seed: int = 0) -> Figure:
    """Σ sums / Σ counts over rows."""

    def statistic(rows: NDArray[np.int64]) -> float:
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(sums[rows].sum() / counts[rows].sum())

    return bootstrap(len(sums), statistic, seed)
