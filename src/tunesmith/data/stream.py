"""Stream: which rows each optimizer step takes, as a pure function of (seed, epoch, index).

    epoch ─▶ chosen rows (source weights) ─▶ order ─▶ cut into steps of about tokens_per_step

Nothing is remembered from step to step: step k is worked out from k, so a run resumes by its step number alone, and
any number of ranks reads the same rows and deals them out among themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.problem import Problem
from tunesmith.core.run import Run
from tunesmith.data.order import permutation
from tunesmith.data.store import Rows

Numbers = NDArray[np.int64]

_ORDER, _CHOICE = 1, 2
TOKENS_PER_STEP = 8192


@dataclass(frozen=True, slots=True)
class Pace:
    """How large a step is: in tokens, or in rows."""

    tokens: int | None = None
    rows: int | None = None

    def costs(self, lengths: Numbers) -> tuple[Numbers, int]:
        """What each row adds to a step [n], and how much a step takes."""
        if self.rows is not None:
            return np.ones_like(lengths), self.rows
        return lengths, self.tokens or TOKENS_PER_STEP


class Stream:
    """The steps of a run over rows of known lengths."""

    def __init__(
        self,
        lengths: Numbers,
        pace: Pace,
        *,
        seed: int = 0,
        order: Literal["shuffled", "given"] = "shuffled",
        sources: Numbers | None = None,
        weights: Sequence[float] = (1.0,),
    ) -> None:
        """lengths: tokens of each row [n]; sources: the source of each row [n]; weights: how often each is seen.

        Raises:
            Problem: there are no rows, or the weights leave none.
        """
        self._costs, self._size = pace.costs(np.asarray(lengths, np.int64))
        self._seed = seed
        self._order = order
        self._sources = np.zeros(len(lengths), np.int64) if sources is None else sources
        self._weights = tuple(weights)
        self._rows_of_epoch = lru_cache(maxsize=2)(self._arrange)
        self._cuts_of_epoch = lru_cache(maxsize=None)(self._cut)
        if len(lengths) == 0 or len(self.epoch(0)) == 0:
            raise Problem("data", "no rows are left to learn from", "See the report on data for what was rejected")

    @classmethod
    def of(cls, run: Run, rows: Rows) -> Stream:
        """The steps that a run makes of its rows.

        Raises:
            Problem: there are no rows, or the weights leave none.
        """
        train = run.train
        pace = Pace(train.tokens_per_step, train.rows_per_step)
        weights = [spec.weight for spec in run.data]
        return cls(rows.lengths, pace, seed=train.seed, order=train.order, sources=rows.sources, weights=weights)

    def epoch(self, number: int) -> Numbers:
        """The rows of an epoch in their order [m]."""
        return self._rows_of_epoch(number)

    def steps_of(self, epoch: int) -> int:
        """How many steps an epoch has; epochs differ a little, since rows fill steps differently in another order."""
        return len(self._cuts_of_epoch(epoch))

    @property
    def steps_per_epoch(self) -> int:
        """How many steps the first epoch has."""
        return self.steps_of(0)

    def total_steps(self, epochs: float, steps: int | None = None) -> int:
        """The steps of a run: `steps` if it is given, else so many epochs, of which the last may be a part."""
        if steps is not None:
            return steps
        whole = int(epochs)
        part = math.ceil((epochs - whole) * self.steps_of(whole)) if epochs > whole else 0
        return sum(self.steps_of(epoch) for epoch in range(whole)) + part

    def rows_of_step(self, step: int) -> list[int]:
        """The rows of step number `step`, counted from 0 over all epochs, in their order."""
        epoch, within = self.epoch_of(step)
        cuts = self._cuts_of_epoch(epoch)
        start = int(cuts[within - 1]) if within else 0
        return [int(row) for row in self.epoch(epoch)[start : int(cuts[within])]]

    def epoch_of(self, step: int) -> tuple[int, int]:
        """The epoch of a step, and its number within that."""
        epoch = 0
        while step >= (steps := self.steps_of(epoch)):
            step -= steps
            epoch += 1
        return epoch, step

    def _arrange(self, epoch: int) -> Numbers:
        """Choose the rows of an epoch by the weights of their sources, then order them."""
        copies = self._copies(epoch)
        passes = range(int(copies.max(initial=0)))
        rows = np.concatenate([np.flatnonzero(copies > turn) for turn in passes] or [np.zeros(0, np.int64)])
        if self._order == "given":
            return rows
        return rows[permutation(len(rows), self._seed, epoch, _ORDER)]

    def _copies(self, epoch: int) -> Numbers:
        """How often each row is seen in an epoch [n].

        The broken part of a weight is a window over the source's shuffled rows that moves on with every epoch, so
        that a weight of 0.5 sees every row in two epochs.
        """
        copies = np.zeros(len(self._sources), np.int64)
        for source, weight in enumerate(self._weights):
            rows = np.flatnonzero(self._sources == source)
            whole = int(weight)
            copies[rows] = whole
            start, stop = (round(len(rows) * (weight - whole) * turn) for turn in (epoch, epoch + 1))
            if stop > start:
                mixed = rows[permutation(len(rows), self._seed, source, _CHOICE)]
                copies[mixed[np.arange(start, stop) % len(rows)]] += 1
        return copies

    def _cut(self, epoch: int) -> Numbers:
        """Where each step of an epoch stops: at the first row with which it is full [steps]."""
        sums = np.cumsum(self._costs[self.epoch(epoch)])
        cuts: list[int] = []
        done = 0
        while done < sums[-1]:
            stop = min(int(np.searchsorted(sums, done + self._size)) + 1, len(sums))
            cuts.append(stop)
            done = int(sums[stop - 1])
        return np.array(cuts, np.int64)
