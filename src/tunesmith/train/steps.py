"""From token rows on disk to the micro-batches of each step.

    order of the epoch ─▶ rows of a step ─▶ packed into micro-batches ─▶ dealt over ranks ─▶ planted as forests
    (seed, epoch, index)   tokens_per_step    tokens_per_batch

The rows of a step do not depend on the micro-batches or on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunesmith.core.rows import Piece, TokenRow
from tunesmith.data.pack import pack, shares
from tunesmith.data.prefixes import pack_rows
from tunesmith.data.store import TokenStore
from tunesmith.data.stream import Stream
from tunesmith.models.forest import Batch
from tunesmith.models.planting import plant

SHOWN_PLACES = 5


@dataclass(frozen=True)
class Side:
    """Rows to learn from, or to be measured on, and what goes with each of them.

    strangers [rows]: the number of another row, whose answer stands beside the row's own, -1 for none;
    reference: for each row the log-probabilities [answers] that a reference gave before training; share: whether
    context that rows of a batch have in common is computed once.
    """

    rows: TokenStore
    strangers: NDArray[np.int64] | None = None
    reference: Sequence[Tensor] | None = None
    share: bool = False

    def plant(self, numbers: Sequence[int]) -> Batch:
        """The batch of some rows."""
        return self._planted(numbers, [self._row(number) for number in numbers])

    def batches(self, numbers: Sequence[int], budget: int, extra: int, rank: int, world: int) -> list[Batch]:
        """A rank's micro-batches of some rows; extra: tokens that each row will have beside its own."""
        rows = [self._row(number) for number in numbers]
        packs = pack_rows(rows, budget, share=self.share, extra=extra)
        mine = [part for part in shares(packs.rows, packs.tokens, world)[rank] if part]
        return [self._planted([numbers[at] for at in part], [rows[at] for at in part]) for part in mine]

    def _planted(self, numbers: Sequence[int], rows: Sequence[TokenRow]) -> Batch:
        batch = plant(rows, share=self.share)
        if self.reference is None:
            return batch
        return batch.with_extra("reference", torch.cat([self.reference[number] for number in numbers]))

    def scored(self, budget: int, score: Callable[[Batch], Tensor]) -> Side:
        """The side with what `score` [R] gives each answer, in batches of `budget` tokens."""
        found: dict[int, Tensor] = {}
        for part in pack([int(length) for length in self.rows.lengths], budget):
            batch = self.plant(part)
            found.update(zip(part, score(batch).cpu().split(list(batch.sizes)), strict=True))
        return replace(self, reference=[found[number] for number in range(len(self.rows))])

    def bare(self) -> Side:
        """The rows alone."""
        return Side(self.rows, share=self.share)

    @cached_property
    def _depth(self) -> int:
        """Tokens of the longest path of all rows: a prompt with a stranger's answer is cut to it."""
        return int(self.rows.depths.max())

    def _row(self, number: int) -> TokenRow:
        row = self.rows.row(number)
        other = -1 if self.strangers is None else int(self.strangers[number])
        if other < 0:
            return row
        answer, room = self.rows.row(other).branches[0], self._depth - len(row.trunk)
        strange = Piece(answer.tokens[:room], answer.weights[:room])
        return replace(row, branches=(*row.branches, strange), values=row.values * 2)


@dataclass(frozen=True)
class StoredSteps:
    """The steps of a run over stored token rows.

    train, held_out: what is learned from, and what is only measured; budget: tokens of a micro-batch; sampled: tokens
    that will be drawn for each row, at most, so that ranks get like shares of them.
    """

    train: Side
    held_out: Side
    stream: Stream
    total: int
    budget: int
    rank: int = 0
    world: int = 1
    sampled: int = 0

    def batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of a step."""
        return self._of(self.train, self.stream.rows_of_step(step))

    def validation(self) -> Sequence[Batch]:
        """This rank's validation batches."""
        return self._validation

    def places(self, step: int) -> str:
        """Where the rows of a step stand in the user's files."""
        numbers = self.stream.rows_of_step(step)
        shown = ", ".join(str(self.train.rows.place(number)) for number in numbers[:SHOWN_PLACES])
        more = len(numbers) - SHOWN_PLACES
        return f"{shown} and {more} more" if more > 0 else shown

    @cached_property
    def _validation(self) -> list[Batch]:
        return self._of(self.held_out, range(len(self.held_out.rows)))

    def _of(self, side: Side, numbers: Sequence[int]) -> list[Batch]:
        return side.batches(numbers, self.budget, self.sampled, self.rank, self.world)
