"""Scores of many rows in few batches: what a policy gives each answer of each row.

TokenRows ─▶ packed ─▶ forests of at most `budget` tokens ─▶ Policy ─▶ one array [answers] a row
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunesmith.core.rows import Piece, TokenRow
from tunesmith.models.forest import Batch, by_row
from tunesmith.models.policy import Policy
from tunesmith.models.pooling import Pooling

Floats = NDArray[np.float64]
Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""

BATCH_TOKENS = 8192


def silent(what: str, done: int, total: int) -> None:
    """A progress that nobody watches."""


@dataclass(frozen=True)
class Scorer:
    """A policy that scores rows. budget: tokens computed at once; memory follows from it, results do not."""

    policy: Policy
    budget: int = BATCH_TOKENS
    progress: Progress = silent

    def logprobs(self, rows: Sequence[TokenRow], what: str = "scoring") -> list[Floats]:
        """For each row the summed log-probability [answers] of what is learned in each of its answers."""
        return self._each(rows, lambda batch: by_row(batch, self.policy.logprobs(batch)), what)

    def reference_logprobs(self, rows: Sequence[TokenRow], what: str = "scoring") -> list[Floats]:
        """The same by the model without its adapter."""
        return self._each(rows, lambda batch: by_row(batch, self.policy.reference_logprobs(batch)), what)

    def scores(self, rows: Sequence[TokenRow], what: str = "scoring") -> list[Floats]:
        """For each row the number [answers] that the score head gives each of its answers."""
        return self._each(rows, self.policy.scores, what)

    def class_scores(self, rows: Sequence[TokenRow], what: str = "scoring") -> list[Floats]:
        """For each row the numbers [answers, C] that the score head gives each of its answers, one a label."""
        return self._each(rows, self.policy.class_scores, what)

    def tag_scores(self, rows: Sequence[TokenRow], what: str = "scoring") -> list[Floats]:
        """For each row the numbers [marks, C] that a head for tags gives each of its marks, one a label."""
        return self._each(rows, self.policy.tag_scores, what, lambda row: len(row.marks))

    def embeddings(self, rows: Sequence[TokenRow], pooling: Pooling, what: str = "embedding") -> list[Floats]:
        """For each row the vector [answers, d] of each of its answers."""
        return self._each(rows, lambda batch: self.policy.embeddings(batch, pooling), what)

    def _each(
        self,
        rows: Sequence[TokenRow],
        measure: Callable[[Batch], Tensor],
        what: str,
        parts: Callable[[TokenRow], int] = lambda row: row.answers,
    ) -> list[Floats]:
        """parts: how many of the measured numbers belong to a row."""
        out: list[Floats] = [np.zeros(0)] * len(rows)
        done = 0
        self.progress(what, 0, len(rows))
        with torch.no_grad(), self.policy.still():
            for numbers in self.policy.packed(rows, self.budget):
                batch = self.policy.plant([rows[number] for number in numbers])
                values = measure(batch).double().cpu().numpy()
                for number, part in zip(numbers, _split(values, [parts(rows[n]) for n in numbers]), strict=True):
                    out[number] = part
                done += len(numbers)
                self.progress(what, done, len(rows))
        return out


def unweighted(row: TokenRow) -> TokenRow:
    """The row with every target counting as one: a measured perplexity knows no weights."""
    return replace(row, trunk=_ones(row.trunk), branches=tuple(_ones(branch) for branch in row.branches))


def learned_tokens(row: TokenRow) -> list[int]:
    """The tokens of a row that are targets, in order."""
    parts = [piece.tokens[piece.weights > 0] for piece in (row.trunk, *row.branches)]
    return np.concatenate(parts).tolist()


def _ones(piece: Piece) -> Piece:
    return Piece(piece.tokens, (piece.weights > 0).astype(np.float32))


def _split(values: Floats, sizes: Sequence[int]) -> list[Floats]:
    return np.split(values, np.cumsum(sizes)[:-1])
