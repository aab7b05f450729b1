"""Which rows are measured and which are learned from; no row stands on both sides.

Sides follow from a hash of the content, so equal rows land on the same side wherever they stand in the files, and
a row stays on its side when others are added (as long as the share and `max_rows` leave it there).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.order import mixed

Numbers = NDArray[np.int64]
Keys = NDArray[np.uint64]

FEWEST = 20
"""From so many rows on, a share above 0 sets at least one row aside."""

_SALT = 0x53504C4954


def split(keys: Keys, fraction: float, max_rows: int) -> tuple[Numbers, Numbers]:
    """The rows to learn from and the rows to measure on, by their content keys [n].

    About `fraction` of the rows are set aside, at most `max_rows`. Rows with equal keys stay together: a group that
    is too large for what is left is learned from.
    """
    wanted = min(max_rows, _wanted(len(keys), fraction))
    unique, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    aside = np.zeros(len(unique), bool)
    left = wanted
    for group in np.argsort(mixed(unique, _SALT), kind="stable"):
        if left == 0:
            break
        if counts[group] <= left:
            aside[group] = True
            left -= int(counts[group])
    measured = aside[inverse] if len(keys) else np.zeros(0, bool)
    return np.flatnonzero(~measured), np.flatnonzero(measured)


def without_shared(training: Keys, validation: Keys) -> Numbers:
    """The training rows [m] whose content does not stand in the validation rows."""
    return np.flatnonzero(~np.isin(training, validation))


def sample(keys: Keys, max_rows: int) -> Numbers:
    """At most so many rows, chosen by their content, in their order."""
    order = np.argsort(mixed(keys, _SALT), kind="stable")
    return np.sort(order[:max_rows])


def _wanted(rows: int, fraction: float) -> int:
    wanted = round(rows * fraction)
    return max(1, wanted) if fraction > 0 and rows >= FEWEST else wanted
