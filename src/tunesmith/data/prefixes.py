"""What rows have in common at their start, so that it is computed once for all of them.

    you are a clerk | text A | first question          [you are a clerk] ──┬── [text A] ──┬── first question
    you are a clerk | text A | second question                             │              └── second question
    you are a clerk | another question                                     └── another question

Only context is shared, tokens before the first that is learned: everything behind it sees the same tokens at the same
positions, so values and gradients are those of the rows apart. The tree is that of the longest common prefixes of the
sorted rows (Kasai et al., 2001), without branches too short to pay.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.rows import TokenRow, Tokens
from tunesmith.data.pack import pack

LEAST = 16
"""Tokens that a shared run has at least; fewer cost more in attention than they save."""


KEYS = 8
"""Tokens above a row whose keys and values, laid out for it, take about the memory of one token that is computed: a
layer keeps two of its widths for each of them, less where heads share keys, and some seventeen for a token."""


class Shared(NamedTuple):
    """Places [start, stop) of the paths of `rows`, which hold the same tokens; `parent` holds what stands before."""

    start: int
    stop: int
    parent: int | None
    rows: tuple[int, ...]


class Packs(NamedTuple):
    """Micro-batches as numbers of rows, and how many tokens each takes the memory of."""

    rows: list[list[int]]
    tokens: list[int]


def shared(rows: Sequence[TokenRow]) -> list[Shared]:
    """What some of the rows have in common, what is shared by more of them first."""
    starts = [context(row) for row in rows]
    order = sorted(range(len(rows)), key=lambda at: starts[at].astype(">i4").tobytes())
    alike = np.array([0, *(common(starts[one], starts[two]) for one, two in pairwise(order))])
    found: list[Shared] = []
    work: list[tuple[int, int, int, int | None]] = [(0, len(rows), 0, None)] if len(rows) > 1 else []
    while work:
        first, last, depth, parent = work.pop()
        inner = alike[first + 1 : last]
        length = int(inner.min())
        if length - depth >= LEAST:
            found.append(Shared(depth, length, parent, tuple(sorted(order[first:last]))))
            depth, parent = length, len(found) - 1
        bounds = [first, *(first + 1 + np.flatnonzero(inner == length)).tolist(), last]
        work += [(one, two, depth, parent) for one, two in pairwise(bounds) if two - one > 1]
    return found


def context(row: TokenRow) -> Tokens:
    """What of a row may be shared: its trunk up to what is learned; nothing where it has none or is marked."""
    if row.marks:
        return row.trunk.tokens[:0]
    learned = np.flatnonzero(row.trunk.weights)
    return row.trunk.tokens[: learned[0]] if len(learned) else row.trunk.tokens


def deepest(found: Sequence[Shared]) -> dict[int, int]:
    """For each row that shares anything, the number of the last that it shares."""
    return {row: number for number, part in enumerate(found) for row in part.rows}


def pack_rows(rows: Sequence[TokenRow], budget: int, *, share: bool, extra: int = 0) -> Packs:
    """Rows into micro-batches of at most `budget` tokens, where what rows share counts once; a longer row stands alone.

    Beside its own tokens a row counts an eighth of those it shares, since attention may lay out their keys for it.
    share: whether anything is shared; extra: tokens that each row will have beside its own.
    """
    found = shared(rows) if share else []
    held: dict[int | None, list[tuple[int, list[int]]]] = {number: [] for number in (None, *range(len(found)))}
    last = deepest(found)
    for number, row in enumerate(rows):
        above = last.get(number)
        begun = 0 if above is None else found[above].stop
        held[above].append((len(row) + extra - begun + -(-begun // KEYS), [number]))
    for number in reversed(range(len(found))):
        start, stop, parent, _ = found[number]
        held[parent] += [(tokens + stop - start, some) for tokens, some in _joined(held[number], budget - stop)]
    packs = sorted((sorted(some), tokens) for tokens, some in _joined(held[None], budget))
    return Packs([some for some, _ in packs], [tokens for _, tokens in packs])


def _joined(parts: Sequence[tuple[int, list[int]]], budget: int) -> list[tuple[int, list[int]]]:
    """Parts, as their tokens and rows, packed together."""
    packs = pack([tokens for tokens, _ in parts], budget)
    return [(sum(parts[at][0] for at in some), [row for at in some for row in parts[at][1]]) for some in packs]


def common(one: NDArray[np.integer], two: NDArray[np.integer]) -> int:
    """How many tokens two runs have in common at their start."""
    length = min(len(one), len(two))
    differs = np.flatnonzero(one[:length] != two[:length])
    return int(differs[0]) if len(differs) else length
