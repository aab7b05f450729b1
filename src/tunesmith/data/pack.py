"""Packing: rows into micro-batches of a token budget, and micro-batches onto ranks.

Best-fit decreasing: rows from long to short, each into the fullest micro-batch that still has room. It needs at most
11/9 of the fewest possible batches (Johnson, 1974), and next to no waste on real lengths. A batch is a forest, so
packing joins rows without padding and without letting them see each other.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Packing:
    """The account of a packing: what it holds, and how full it is."""

    rows: int
    tokens: int
    packs: int
    budget: int

    @property
    def fill(self) -> float:
        """The share of the budget that is used; above 1 where single rows are longer than the budget."""
        return self.tokens / (self.packs * self.budget) if self.packs else 1.0


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Micro-batches as positions in `lengths`, each with at most `budget` tokens; a longer row stands alone.

    Positions rise within a micro-batch, and micro-batches follow each other by their first row.
    """
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for at in sorted(range(len(lengths)), key=lambda at: (-lengths[at], at)):
        length = int(lengths[at])
        found = bisect_left(room, (length, -1))
        if found < len(room):
            left, number = room.pop(found)
        else:
            left, number = max(budget, length), len(packs)
            packs.append([])
        packs[number].append(at)
        insort(room, (left - length, number))
    return sorted(sorted(part) for part in packs)


def account(packs: Sequence[Sequence[int]], lengths: Sequence[int], budget: int) -> Packing:
    """What a packing holds."""
    rows = [at for part in packs for at in part]
    return Packing(len(rows), sum(int(lengths[at]) for at in rows), len(packs), budget)


def shares(packs: Sequence[Sequence[int]], lengths: Sequence[int], world: int) -> list[list[list[int]]]:
    """The micro-batches of each rank: equally many (empty ones fill up), with tokens as even as can be.

    The longest goes first, each to the rank with the fewest tokens that may still take one.
    """
    each = -(-len(packs) // world)
    tokens = [0] * world
    out: list[list[list[int]]] = [[] for _ in range(world)]
    sizes = [sum(int(lengths[at]) for at in part) for part in packs]
    for number in sorted(range(len(packs)), key=lambda number: (-sizes[number], number)):
        rank = min((rank for rank in range(world) if len(out[rank]) < each), key=lambda rank: (tokens[rank], rank))
        out[rank].append(list(packs[number]))
        tokens[rank] += sizes[number]
    return [sorted(part) + [[] for _ in range(each - len(part))] for part in out]
