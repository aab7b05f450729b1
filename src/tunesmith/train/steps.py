"""From token rows on disk to the micro-batches of each step.

    order of the epoch ─▶ rows of a step ─▶ packed into micro-batches ─▶ dealt over ranks ─▶ planted as forests
    (seed, epoch, index)   tokens_per_step    tokens_per_batch

The rows of a step do not depend on the micro-batches or on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tunesmith.data.pack import pack, shares
from tunesmith.data.store import TokenStore
from tunesmith.data.stream import Stream
from tunesmith.models.forest import Batch, plant

SHOWN_PLACES = 5


@dataclass(frozen=True)
class StoredSteps:
    """The steps of a run over stored token rows.

    train, held_out: token rows; budget: tokens of a micro-batch; reference [rows of train, answers] and
    held_out_reference: log-probabilities of answers under the untouched model, where they were computed before.
    """

    train: TokenStore
    held_out: TokenStore
    stream: Stream
    total: int
    budget: int
    rank: int = 0
    world: int = 1
    reference: Tensor | None = None
    held_out_reference: Tensor | None = None

    def batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of a step."""
        numbers = self.stream.rows_of_step(step)
        return self._plant(self.train, numbers, self.reference)

    def validation(self) -> Sequence[Batch]:
        """This rank's validation batches."""
        return self._validation

    def places(self, step: int) -> str:
        """Where the rows of a step stand in the user's files."""
        numbers = self.stream.rows_of_step(step)
        shown = ", ".join(str(self.train.place(number)) for number in numbers[:SHOWN_PLACES])
        more = len(numbers) - SHOWN_PLACES
        return f"{shown} and {more} more" if more > 0 else shown

    @cached_property
    def _validation(self) -> list[Batch]:
        return self._plant(self.held_out, range(len(self.held_out)), self.held_out_reference)

    def _plant(self, rows: TokenStore, numbers: Sequence[int], reference: Tensor | None) -> list[Batch]:
        packs = pack([int(rows.lengths[number]) for number in numbers], self.budget)
        mine = shares(packs, [int(rows.lengths[number]) for number in numbers], self.world)[self.rank]
        return [self._batch(rows, [numbers[place] for place in part], reference) for part in mine if part]

    def _batch(self, rows: TokenStore, numbers: Sequence[int], reference: Tensor | None) -> Batch:
        batch = plant([rows.row(number) for number in numbers])
        if reference is None:
            return batch
        return batch.with_extra("reference", reference[torch.tensor(list(numbers))].flatten())


def precompute(rows: TokenStore, budget: int, score: Callable[[Batch], Tensor]) -> Tensor:
    """[rows, answers a row] what `score` [R] gives each answer of every row, in batches of `budget` tokens."""
    out = torch.zeros(len(rows), 2)
    for part in pack([int(length) for length in rows.lengths], budget):
        batch = plant([rows.row(number) for number in part])
        out[torch.tensor(part)] = score(batch).cpu().view(len(part), -1)
    return out
