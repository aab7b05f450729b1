"""A forest as sequences of their own, as flash attention's kernels for sequences of many lengths read it.

    tokens   [ prompt | chosen | rejected ]
    queries    prompt | chosen | rejected                        each token once
    keys       prompt | prompt chosen | prompt rejected          the path that each segment ends, from its root

The queries of a segment are the last places of its path, so a causal kernel that lines both up at their ends computes
the forest, a sliding window too: positions go on from the parent, and places of a path are positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from tunesmith.models.forest import Layout


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the queries and keys of each segment begin and end.

    queries [S + 1], keys [S + 1]: where sequences end, from 0 on, in int32; order [K]: the key at each place of the
    paths, None where that is the keys as they stand; longest_query, longest_path: tokens of the longest of each.
    """

    queries: Tensor
    keys: Tensor
    order: Tensor | None
    longest_query: int
    longest_path: int

    @property
    def bounds(self) -> tuple[Tensor, Tensor, int, int]:
        """What kernels are told, in their order: where queries and keys end, and the longest of each."""
        return self.queries, self.keys, self.longest_query, self.longest_path


def paths_of(layout: Layout) -> Paths:
    """The paths of a forest, found once for all layers."""
    if Paths not in layout.kept:
        layout.kept[Paths] = _found(layout)
    return layout.kept[Paths]


def _found(layout: Layout) -> Paths:
    device, past = layout.positions.device, layout.past_length
    spans = [
        [(0, past), *((part.start + past, part.stop + past) for part in (*above, segment))]
        for segment, above in zip(layout.segments, layout.ancestors, strict=True)
    ]
    own = [segment.stop - segment.start for segment in layout.segments]
    path = [sum(stop - start for start, stop in parts) for parts in spans]
    order = None
    if own != path:
        order = torch.cat([torch.arange(start, stop) for parts in spans for start, stop in parts]).to(device)
    return Paths(_ends(own).to(device), _ends(path).to(device), order, max(own), max(path))


def _ends(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
