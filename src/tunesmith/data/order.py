"""Random numbers as a pure function of a seed and a number, the same on every machine and in every version.

SplitMix64's mixing function (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), written
out in wrapping 64-bit arithmetic, so that no library can change what a seed means.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_MASK = (1 << 64) - 1


def mixed(numbers: ArrayLike, *seeds: int) -> NDArray[np.uint64]:
    """A well mixed 64-bit number for each number [n], different for each sequence of seeds."""
    value = np.asarray(numbers, np.uint64)
    for seed in seeds:
        value = _mix(value ^ _mix(np.full(1, seed & _MASK, np.uint64)))
    return _mix(value)


def permutation(count: int, *seeds: int) -> NDArray[np.int64]:
    """The numbers from 0 to count - 1 in an order that follows from the seeds alone [count].

    Each number draws a ticket from itself and the seeds, and the tickets are sorted.
    """
    return np.argsort(mixed(np.arange(count), *seeds), kind="stable")


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        value = value + _GAMMA
        value = (value ^ (value >> np.uint64(30))) * _FIRST
        value = (value ^ (value >> np.uint64(27))) * _SECOND
    return value ^ (value >> np.uint64(31))
