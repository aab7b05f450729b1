"""Rounding a matrix to whole numbers, with scales that make the squared error small.

    int8   W ≈ r · c            c in [-127, 127], r a scale for each row
    int4   W ≈ r · m · c        c in [-8, 7], m in [-15, 15] a multiplier for each group of 32

In 8 bits the largest number of a row sets its scale. In 4 bits it is tried whether a smaller one, which cuts the
largest numbers off, is better for the rest; its sign is such that the largest number has -8 to itself, not 7.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tunesmith.generate.products import GROUP, Matrix, Nibbles
from tunesmith.models.whole import Whole

AT_ONCE = 1 << 22
"""Weights that are rounded at once."""
TRIED = 3
"""Multipliers that are tried for a group, from the one that cuts nothing off downwards."""


def in_eight_bits(matrix: Tensor) -> Matrix:
    """A matrix [N, K] in 8 bits."""
    scales = matrix.float().abs().amax(1).clamp_min(1e-30) / 127
    codes = torch.empty(matrix.shape, dtype=torch.int8)
    for part in _portions(matrix):
        codes[part] = (matrix[part].float() / scales[part, None]).round_().to(torch.int8)
    return Whole(codes, scales)


def in_four_bits(matrix: Tensor) -> Matrix:
    """A matrix [N, K] in 4 bits, or in 8 where its rows are no whole number of groups."""
    if matrix.shape[1] % GROUP:
        return in_eight_bits(matrix)
    parts = [_nibbles(matrix[part].float()) for part in _portions(matrix)]
    numbers, multipliers, scales = (torch.cat(found) for found in zip(*parts, strict=True))
    return Nibbles(numbers, multipliers, scales)


def _nibbles(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers [N, K], multipliers [N, K / GROUP] and scales [N] of some rows."""
    groups = matrix.unflatten(1, (-1, GROUP))
    low, high = groups.aminmax(dim=-1)
    top = torch.where(high > -low, -high, -low)  # what the number -8 stands for, turned round
    scales = _four_digits(top.abs().amax(1).clamp_min(1e-30) / (8 * 15))
    first = (top / (8 * scales[:, None])).abs().ceil().clamp_(1, 15)
    best = torch.full_like(first, torch.inf)
    multipliers, numbers = torch.zeros_like(first), torch.zeros_like(groups)
    for less in range(TRIED):
        tried = (first - less).clamp_min_(1).copysign(top)
        steps = (tried * scales[:, None])[..., None]
        found = (groups / steps).round_().clamp_(-8, 7)
        off = (found * steps - groups).square_().sum(-1)
        better = off < best
        best = torch.where(better, off, best)
        multipliers = torch.where(better, tried, multipliers)
        numbers = torch.where(better[..., None], found, numbers)
    return numbers.flatten(1).to(torch.int8), multipliers.to(torch.int8), scales


def _four_digits(scales: Tensor) -> Tensor:
    """Scales rounded up to 4 binary digits, so that their products with 4-bit numbers are exact in bfloat16."""
    fraction, exponent = torch.frexp(scales)
    return torch.ldexp((fraction * 16).ceil() / 16, exponent)


def _portions(matrix: Tensor) -> Iterator[slice]:
    """The rows of a matrix, a few at a time."""
    count = max(1, AT_ONCE // matrix.shape[1])
    return (slice(start, start + count) for start in range(0, len(matrix), count))
