# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
"""Changes of weights as products of two thin matrices, and the best such product of a given rank.

    Δ = B A,   B [out, r], A [r, in]        best of rank k: the k largest singular values (Eckart & Young 1936)

The singular values of a product of thin matrices come from small ones: B = Q R, Aᵀ = P S, Δ = Q (R Sᵀ) Pᵀ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """A change up @ down in float32: up [out, r], down [r, in]."""

    up: Tensor
    down: Tensor

    @property
    def rank(self) -> int:
        """r, the columns of the first factor."""
        return int(self.up.shape[1])

    def dense(self) -> Tensor:
        """The change as a whole matrix [out, in]."""
        return self.up @ self.down

    def shortened(self, rank: int) -> Factors:
        """The nearest change of this rank; the change itself where it has no more."""
        if self.rank <= rank:
            return self
        left, small_left = torch.linalg.qr(self.up)
        right, small_right = torch.linalg.qr(self.down.T)
        up, sizes, down = torch.linalg.svd(small_left @ small_right.T, full_matrices=False)
        return _split(left @ up[:, :rank], sizes[:rank], down[:rank] @ right.T)


def nearest(matrix: Tensor, rank: int) -> Factors:
    """The change of this rank that is nearest to a matrix [out, in]."""
    up, sizes, down = torch.linalg.svd(matrix.float(), full_matrices=False)
    rank = min(rank, len(sizes))
    return _split(up[:, :rank], sizes[:rank], down[:rank])


def joined(parts: Sequence[Factors]) -> Factors:
    """The exact sum of changes: their factors side by side."""
    return Factors(torch.cat([part.up for part in parts], dim=1), torch.cat([part.down for part in parts], dim=0))


@dataclass
class Distance:
    """How far changes are from what they should be, as a share of the latter's length, over all and at worst."""

    missed: float = 0.0
    wanted: float = 0.0
    worst: float = 0.0
    where: str = ""

    def add(self, name: str, found: Tensor, wanted: Tensor) -> float:
        """Count one weight in; its own relative distance."""
        missed, size = float((found - wanted).norm()), float(wanted.norm())
        own = missed / size if size else (0.0 if missed == 0 else math.inf)
        self.missed, self.wanted = math.hypot(self.missed, missed), math.hypot(self.wanted, size)
        if own >= self.worst:
            self.worst, self.where = own, name
        return own

    @property
    def relative(self) -> float:
        """The whole distance over the whole length."""
        return self.missed / self.wanted if self.wanted else 0.0


def _split(up: Tensor, sizes: Tensor, down: Tensor) -> Factors:
    """Both factors get the root of each singular value, so that neither is far larger than the other."""
    root = sizes.sqrt()
    return Factors((up * root).contiguous(), (root[:, None] * down).contiguous())
