"""Pooling: one vector for each text, out of the hidden states of its tokens.

    mean   of all its tokens         last   at its last token         cls   at its first token

    vector = m / |m|,   m = mean of the states that are read                                    (float32)

The first token of a decoder sees nothing but itself, so `cls` is for encoders; their first token is made for it.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.models.forest import Batch

Pooling = Literal["mean", "last", "cls"]


def read_at(batch: Batch, pooling: Pooling) -> tuple[Tensor, Tensor]:
    """The tokens [K] whose states make the vectors, and the answer [K] that each belongs to."""
    paths = [(*batch.layout.ancestors[leaf], batch.segments[leaf]) for leaf in batch.leaves]
    spans = [[(part.start, part.stop) for part in path] for path in paths]
    if pooling == "last":
        spans = [[(path[-1][1] - 1, path[-1][1])] for path in spans]
    if pooling == "cls":
        spans = [[(path[0][0], path[0][0] + 1)] for path in spans]
    source = [torch.arange(start, stop) for path in spans for start, stop in path]
    lengths = torch.tensor([sum(stop - start for start, stop in path) for path in spans])
    row = torch.repeat_interleave(torch.arange(len(spans)), lengths)
    return torch.cat(source).to(batch.tokens.device), row.to(batch.tokens.device)


def pooled(states: Tensor, row: Tensor, count: int) -> Tensor:
    """[count, d] vectors of length 1 along the means of the states [K, d] of each answer `row` [K], in float32."""
    sums = torch.zeros(count, states.shape[-1], dtype=torch.float32, device=states.device)
    return F.normalize(sums.index_add(0, row, states.float()), dim=-1)
