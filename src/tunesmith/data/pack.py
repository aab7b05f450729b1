"""Packing: rows into micro-batches of a token budget, and micro-batches onto ranks.

Best-fit decreasing: rows from long to short, each into the fullest micro-batch that still has room. It needs at most
11/9 of the fewest possible batches (Johnson, 1974), and next to no waste on real lengths. Where that leaves room, the
rows are dealt over as many micro-batches again, longest first, each to the one with the fewest tokens (Graham, 1969):
even ones take less memory and less time than full ones and a rest. A batch is a forest, so packing joins rows without
padding and without letting them see each other.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace


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
    order = sorted(range(len(lengths)), key=lambda at: (-lengths[at], at))
    full = _best_fit(order, lengths, budget)
    even = _dealt(order, lengths, len(full))
    fits = all(len(part) == 1 or sum(int(lengths[at]) for at in part) <= budget for part in even)
    return sorted(sorted(part) for part in (even if fits else full))


def _best_fit(order: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for at in order:
        length = int(lengths[at])
        found = bisect_left(room, (length, -1))
        if found < len(room):
            left, number = room.pop(found)
        else:
            left, number = max(budget, length), len(packs)
            packs.append([])
        packs[number].append(at)
        insort(room, (left - length, number))
    return packs


def _dealt(order: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    packs: list[list[int]] = [[] for _ in range(count)]
    tokens = [(0, number) for number in range(count)]
    for at in order:
        held, number = tokens[0]
        packs[number].append(at)
        heapreplace(tokens, (held + int(lengths[at]), number))
    return packs


def account(packs: Sequence[Sequence[int]], lengths: Sequence[int], budget: int) -> Packing:
    """What a packing holds."""
    rows = [at for part in packs for at in part]
    return Packing(len(rows), sum(int(lengths[at]) for at in rows), len(packs), budget)


def shares(packs: Sequence[Sequence[int]], sizes: Sequence[int], world: int) -> list[list[list[int]]]:
    """The micro-batches of each rank: equally many (empty ones fill up), with tokens as even as can be.

    sizes: the tokens of each. The longest goes first, each to the rank with the fewest tokens that may still take one.
    """
    each = -(-len(packs) // world)
    tokens = [0] * world
    out: list[list[list[int]]] = [[] for _ in range(world)]
    for number in sorted(range(len(packs)), key=lambda number: (-sizes[number], number)):
        rank = min((rank for rank in range(world) if len(out[rank]) < each), key=lambda rank: (tokens[rank], rank))
        out[rank].append(list(packs[number]))
        tokens[rank] += sizes[number]
    return [sorted(part) + [[] for _ in range(each - len(part))] for part in out]
