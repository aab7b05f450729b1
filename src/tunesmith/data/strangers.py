"""Strangers: for each row another one with another prompt, whose answer then stands beside the row's own.

    rows in the order of their contents' hashes, as a ring      a ─▶ b ─▶ c ─▶ a
    a's stranger is the next row whose prompt is not a's

What an answer to something else is worth shows how far a model has moved on the whole. The ring does not depend on the
order of rows in files or on how a step is cut, so a row keeps its stranger for the whole run.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.store import TokenStore


def strangers(rows: TokenStore) -> NDArray[np.int64]:
    """[rows] for each row the number of another one with another prompt; -1 where all prompts are the same."""
    prompts = [hashlib.blake2b(rows.row(number).trunk.tokens.tobytes()).digest() for number in range(len(rows))]
    ring = np.argsort(rows.keys, kind="stable")
    found = np.full(len(rows), -1, np.int64)
    after = 0
    for here in [*ring[::-1], *ring[::-1]]:  # backwards and twice, so that the end of the ring knows its beginning
        found[here] = after if prompts[after] != prompts[here] else found[after]
        after = int(here)
    return found
