"""The elements of a certain rank in a tensor that is never whole in memory, found exactly and without sorting it.

    every block ─▶ a sample ─▶ two values that the wanted rank lies between, almost surely
    every block ─▶ counts below them, the few elements between them ─▶ the value of that rank (a partial sort)

This is the idea of Floyd and Rivest (SELECT, 1975) over blocks. A rank that falls outside the two values is looked for
again beyond them, so the sample decides over speed only. Equal elements are common, since differences of bfloat16
weights lie on a grid; where only some of them have a place in a band, these are spread evenly over the tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.problem import Problem
from tunesmith.merge.methods import Array, Block, Whole

Look = Callable[[Block], Sequence[Array | None]]
"""The values of a block that are ranked, in lanes (one a model); None for a lane that is not asked for."""

SAMPLE = 1 << 17
"""Elements of a sample: a rank is then found among about 2 % of all elements."""
SPREAD = 5.0
"""Standard deviations that the two values are away from where the sample expects the rank."""


@dataclass(frozen=True)
class Ranked:
    """The value of one rank, counted from the smallest element.

    less: how many elements are smaller; equal: how many equal it, by block.
    """

    value: float
    less: int
    equal: tuple[int, ...]


@dataclass(frozen=True)
class Share:
    """So many of the elements that equal a value, spread evenly. before: how many there are before each block."""

    value: float
    kept: int
    total: int
    before: tuple[int, ...]

    @classmethod
    def of(cls, found: Ranked, kept: int) -> Share:
        """`kept` of the elements that equal what was found."""
        before = (0, *np.cumsum(found.equal).tolist())
        return cls(found.value, kept, before[-1], before[:-1])

    @property
    def whole(self) -> bool:
        """Whether all of them are kept."""
        return self.kept == self.total

    def mark(self, mask: NDArray[np.bool_], values: Array, number: int) -> None:
        """Set the mask where an equal element of a block has a place, and clear it where it has none."""
        places = np.flatnonzero(values == self.value)
        order = self.before[number] + np.arange(len(places))
        mask.reshape(-1)[places] = (order + 1) * self.kept // self.total > order * self.kept // self.total


@dataclass(frozen=True)
class Band:
    """The elements whose ranks lie in a range, the smallest first. high: None for a range up to the largest."""

    low: Share
    high: Share | None

    @classmethod
    def of(cls, start: int, stop: int, low: Ranked, high: Ranked | None) -> Band:
        """Ranks start to stop, stop left out; low, high: what has the first and the last of them."""
        if high is None:
            return cls(Share.of(low, low.less + sum(low.equal) - start), None)
        if low.value == high.value:
            share = Share.of(low, stop - start)
            return cls(share, share)
        return cls(Share.of(low, low.less + sum(low.equal) - start), Share.of(high, stop - high.less))

    def mask(self, values: Array, number: int) -> NDArray[np.bool_]:
        """Which elements of block `number` are in the band; values: as they were ranked."""
        low, high = self.low, self.high
        mask = values >= low.value if low.whole else values > low.value
        if high is not None:
            mask &= values <= high.value if high.whole else values < high.value
        for share in {low, high or low}:
            if not share.whole:
                share.mark(mask, values, number)
        return mask


def bands(whole: Whole, look: Look, ranges: Sequence[tuple[int, int] | None]) -> list[Band | None]:
    """The band of each lane for a range of ranks (start, stop), or None for a lane without one.

    Raises:
        Problem: the tensor holds values that are not finite.
    """
    size = math.prod(whole.shape)
    wanted = [() if part is None else (part[0], part[1] - 1)[: 1 + (part[1] < size)] for part in ranges]
    found = ranked(whole, look, wanted)
    return [
        None if part is None else Band.of(*part, pair[0], pair[1] if len(pair) > 1 else None)
        for part, pair in zip(ranges, found, strict=True)
    ]


def ranked(whole: Whole, look: Look, ranks: Sequence[Sequence[int]]) -> list[list[Ranked]]:
    """What has the wanted ranks in each lane; ranks count from 0, the smallest element.

    Raises:
        Problem: the tensor holds values that are not finite.
    """
    size = math.prod(whole.shape)
    samples = _samples(whole, look, len(ranks), size)
    probes = [
        [_Probe(rank, *_around(rank / size, sample)) for rank in lane]
        for lane, sample in zip(ranks, samples, strict=True)
    ]
    while open_ones := [probe for lane in probes for probe in lane if probe.found is None]:
        _pass(whole, look, probes)
        for probe in open_ones:
            probe.settle()
    return [[probe.found for probe in lane if probe.found] for lane in probes]


def _samples(whole: Whole, look: Look, lanes: int, size: int) -> list[Array | None]:
    """A sorted sample of each lane, or None where the tensor is small enough to be taken whole."""
    if size <= SAMPLE:
        return [None] * lanes
    step = size // SAMPLE | 1  # odd, so that it meets every column of a tensor whose rows are a power of two long
    parts: list[list[Array]] = [[] for _ in range(lanes)]
    for block in whole.every(step):
        for part, values in zip(parts, look(block), strict=True):
            if values is not None:
                part.append(values.reshape(-1))  # with a step of 1 a block has its shape
    return [np.sort(np.concatenate(part)) if part else None for part in parts]


def _around(share: float, sample: Array | None) -> tuple[float, float]:
    """Two values that the element at this share of the order lies between, almost surely."""
    if sample is None:
        return -math.inf, math.inf
    middle, size = share * len(sample), len(sample)
    margin = SPREAD * math.sqrt(size * share * (1 - share)) + SPREAD
    low, high = int(middle - margin), math.ceil(middle + margin)
    return float(sample[low]) if low >= 0 else -math.inf, float(sample[high]) if high < size else math.inf


def _pass(whole: Whole, look: Look, probes: Sequence[Sequence[_Probe]]) -> None:
    for block in whole:
        for lane, values in zip(probes, look(block), strict=True):
            for probe in lane:
                if values is not None and probe.found is None:
                    probe.see(values.reshape(-1))


@dataclass
class _Probe:
    """One rank that is looked for between two values.

    below: elements under `low`; inside: per block the elements strictly between; at_low, at_high: equal ones per block.
    """

    rank: int
    low: float
    high: float
    below: int = 0
    inside: list[Array] = field(default_factory=list[NDArray[Any]])
    at_low: list[int] = field(default_factory=list[int])
    at_high: list[int] = field(default_factory=list[int])
    found: Ranked | None = None

    def see(self, values: Array) -> None:
        """Take note of a block."""
        under = values < self.low
        self.below += int(np.count_nonzero(under))
        np.logical_or(under, values > self.high, out=under)
        near = values.compress(np.logical_not(under, out=under))
        self.at_low.append(int(np.count_nonzero(near == self.low)))
        self.at_high.append(int(np.count_nonzero(near == self.high)) if self.high > self.low else 0)
        self.inside.append(near[(near > self.low) & (near < self.high)])

    def settle(self) -> None:
        """Find the element among what was seen, or look beyond the two values next time."""
        low, between = sum(self.at_low), sum(map(len, self.inside))
        place = self.rank - self.below
        if place < 0:
            self._again(-math.inf, self.low)
        elif place < low:
            self.found = Ranked(self.low, self.below, tuple(self.at_low))
        elif place < low + between:
            self._take(place - low, self.below + low)
        elif place < low + between + sum(self.at_high):
            self.found = Ranked(self.high, self.below + low + between, tuple(self.at_high))
        else:
            self._again(self.high, math.inf)

    def _take(self, place: int, below: int) -> None:
        values = np.concatenate(self.inside)
        value = np.partition(values, place)[place]
        equal = tuple(int(np.count_nonzero(part == value)) for part in self.inside)
        self.found = Ranked(float(value), below + int(np.count_nonzero(values < value)), equal)
        self.inside = []

    def _again(self, low: float, high: float) -> None:
        if (low, high) == (self.low, self.high) or low == high:
            raise Problem("", "the tensor holds values that are not finite", "Check the model that it comes from")
        self.low, self.high, self.below = low, high, 0
        self.inside, self.at_low, self.at_high = [], [], []
