"""Which key a query of a forest sees, as FlexAttention asks it: of two tokens, in a few comparisons.

Segments are numbered from each root downward, a segment before all that goes on from it, so those below a segment are
the numbers from its own to its `last`:

    number        0                       3          query q sees key k if
    last          2                       4            number[k] <= number[q] <= last[k]      k is in q's line
             0 ──┬── 1               3 ─── 4           position[k] <= position[q]             and not after it
                 └── 2                                 position[q] - position[k] < window     nor too far back

Blocks of 128 queries by 128 keys that nothing is seen in are skipped, and those that all is seen in need no mask. They
are found from the same comparisons, some queries at a time, so no mask of all pairs ever exists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from tunesmith.models.forest import Layout, Segment

BLOCK = 128
PAIRS = 1 << 26
"""Pairs of tokens that are compared at once while blocks are found; 64 MiB a comparison."""

Sees = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Whether a query sees a key: of batch, head, query and key by their indices."""


class Tree(NamedTuple):
    """For queries [N] and keys [n + N] their segment's number and position, and for keys the last number below it.

    The n keys that stand before every root are above all segments.
    """

    query_number: Tensor
    query_position: Tensor
    key_number: Tensor
    key_last: Tensor
    key_position: Tensor

    @classmethod
    def of(cls, layout: Layout) -> Tree:
        """The numbers of a layout, on its device."""
        past, positions = layout.past_length, layout.positions
        sizes = torch.tensor([segment.stop - segment.start for segment in layout.segments])
        numbers, lasts = _numbered(layout.segments)
        number, last = (torch.repeat_interleave(torch.tensor(each), sizes) for each in (numbers, lasts))
        return cls(
            number.to(positions.device),
            positions,
            F.pad(number, (past, 0), value=0).to(positions.device),
            F.pad(last, (past, 0), value=len(layout.segments)).to(positions.device),
            torch.cat([torch.arange(past, device=positions.device), positions]),
        )


def block_mask(layout: Layout, window: int | None) -> BlockMask:
    """What FlexAttention needs of a forest, found once for all layers with the same window."""
    key = (BlockMask, window)
    if key not in layout.kept:
        layout.kept[key] = _drawn(Tree.of(layout), window)
    return layout.kept[key]


def sees(tree: Tree, window: int | None) -> Sees:
    """The test of two tokens."""
    query_number, query_position, key_number, key_last, key_position = tree

    def in_line(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        number = query_number[query]
        above = (key_number[key] <= number) & (number <= key_last[key])
        return above & (key_position[key] <= query_position[query])

    if window is None:
        return in_line

    def near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        behind = query_position[query] - key_position[key]
        return in_line(batch, head, query, key) & (behind < window)

    return near


def _numbered(segments: tuple[Segment, ...]) -> tuple[list[int], list[int]]:
    """For each segment its number from the root downward, and the last number below it."""
    below = [1] * len(segments)
    for number in reversed(range(len(segments))):
        parent = segments[number].parent
        if parent is not None:
            below[parent] += below[number]
    numbers, free, roots = [0] * len(segments), [0] * len(segments), 0
    for number, segment in enumerate(segments):
        if segment.parent is None:
            numbers[number], roots = roots, roots + below[number]
        else:
            numbers[number] = free[segment.parent]
            free[segment.parent] += below[number]
        free[number] = numbers[number] + 1
    return numbers, [first + size - 1 for first, size in zip(numbers, below, strict=True)]


def _drawn(tree: Tree, window: int | None) -> BlockMask:
    queries, keys = len(tree.query_number), len(tree.key_number)
    test = sees(tree, window)
    seen = _counts(test, queries, keys, tree.query_number.device)
    whole = seen == BLOCK * BLOCK
    partial, full = _ordered((seen > 0) & ~whole), _ordered(whole)
    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=BLOCK, mask_mod=test, seq_lengths=(queries, keys))


def _counts(test: Sees, queries: int, keys: int, device: torch.device) -> Tensor:
    """[ceil(N / 128), ceil(K / 128)] how many pairs of each block are seen."""
    none = torch.zeros((), dtype=torch.long, device=device)
    every = torch.arange(keys, device=device)[None]
    step = max(BLOCK, PAIRS // keys // BLOCK * BLOCK)
    parts = []
    for start in range(0, queries, step):
        some = torch.arange(start, min(start + step, queries), device=device)[:, None]
        dense = F.pad(test(none, none, some, every), (0, -keys % BLOCK, 0, -len(some) % BLOCK))
        parts.append(dense.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).sum(dim=(1, 3)))
    return torch.cat(parts)


def _ordered(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """How many key blocks each query block has, and their numbers, first those chosen; as BlockMask holds them."""
    order = chosen.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(dim=-1).to(torch.int32)[None, None], order.to(torch.int32)[None, None]
