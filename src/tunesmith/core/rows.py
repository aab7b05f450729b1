"""TokenRow: one example as tokens, a trunk and the branches that share it.

    trunk ──┬── branch 0      a chat or a text has a trunk only;
            └── branch 1      a preference has its prompt as trunk, chosen and rejected as branches

            ┌── branch 0      texts that are compared have no trunk: each branch is a text of its own, and the row
            └── branch 1      keeps them together

Every token has a weight: 0 for context, above 0 where the model should have predicted it. The first token of a text
has nothing before it and is never learned; the first of a branch is predicted from the trunk's last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]
Weights = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A run of tokens [L] with the weight [L] of learning each."""

    tokens: Tokens
    weights: Weights

    def __post_init__(self) -> None:
        if self.tokens.shape != self.weights.shape or self.tokens.ndim != 1:
            raise ValueError(f"tokens {self.tokens.shape} and weights {self.weights.shape} must be equal rows")

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True, eq=False)
class TokenRow:
    """One example as tokens; `index` is its number in the corpus, from which its place is known.

    values: numbers that an objective may need, such as labels: `width` of them for each answer, one answer after the
    other; or one for each mark; empty for none. marks: positions in the trunk that something is read at, in order.
    note: text that goes with the row and never enters the model.
    """

    trunk: Piece
    branches: tuple[Piece, ...] = ()
    values: tuple[float, ...] = ()
    index: int = -1
    marks: tuple[int, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if len(self.trunk) == 0 and not (self.branches and all(map(len, self.branches))):
            raise ValueError("a row needs at least one token in its trunk, or in each of its texts where it has none")
        places = len(self.marks) or self.answers
        if len(self.values) % places or (self.marks and len(self.values) > places):
            raise ValueError(f"{len(self.values)} values for {places} {'marks' if self.marks else 'answers'}")
        if any(not 0 <= mark < len(self.trunk) for mark in self.marks):
            raise ValueError(f"marks {self.marks} in a trunk of {len(self.trunk)} tokens")

    def __len__(self) -> int:
        return len(self.trunk) + sum(len(branch) for branch in self.branches)

    @property
    def depth(self) -> int:
        """Tokens of the longest path from the root: what positions and attention must reach."""
        return len(self.trunk) + max((len(branch) for branch in self.branches), default=0)

    @property
    def answers(self) -> int:
        """How many paths from the root to a leaf there are."""
        return max(1, len(self.branches))

    @property
    def width(self) -> int:
        """How many values each answer has, or each mark; 0 where there are none."""
        return len(self.values) // (len(self.marks) or self.answers)

    @property
    def learned(self) -> int:
        """How many tokens are targets."""
        first = 0 if len(self.trunk) else 1
        return int(np.count_nonzero(self.trunk.weights[1:])) + sum(
            int(np.count_nonzero(branch.weights[first:])) for branch in self.branches
        )
