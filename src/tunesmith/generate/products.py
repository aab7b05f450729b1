"""Products with a matrix in whole numbers: 8 bits a weight, and activations in two digits of 8 bits.

    x  ≈  s · (256 · hi + lo)            s = max |x| of a row / 32512,  hi and lo in [-128, 127]
    y  =  s · (256 · hi Wᵀ + lo Wᵀ) · r        W in [-127, 127], r a scale for each output

One digit alone (8 bits) loses what rows with outliers hold in their small numbers; two keep 16 bits, so the weights'
rounding is all that differs from the plain product. Few rows wait for the weights to come from memory, and the second
digit travels with the first through the same pass. The whole-number products are oneDNN's, with the matrix packed once;
whether they are exact on this machine is found by trying, since processors without VNNI add up in 16 bits.
"""

from __future__ import annotations

from functools import cache
from typing import Self

import torch
from torch import Tensor, nn

DIGIT = 256
MIDDLE = 128
"""Zero, in a byte."""
LARGEST = 127 * DIGIT
"""What the largest number of a row becomes."""
_ZERO = torch.tensor(DIGIT * MIDDLE + MIDDLE + 0.5)
"""Zero in both bytes, and half a step more, since a cast cuts off."""
_TINY = torch.tensor(1e-30)
GROUP = 32
"""Weights of a row that share a scale in 4 bits."""


class Digits:
    """Rows of activations in two digits. numbers: [2R, K] as bytes, the lower digits first; scale: [R, 1]."""

    def __init__(self, rows: Tensor) -> None:
        """rows: [R, K], float32."""
        self.scale = torch.add(_TINY, rows.abs().amax(-1, keepdim=True), alpha=1 / LARGEST)
        whole = torch.addcdiv(_ZERO, rows, self.scale).to(torch.int32)
        count, width = rows.shape
        # a number lies in memory as its digits, the lowest first, on every machine that has these products
        digits = whole.view(torch.uint8).as_strided((2, count, width), (1, 4 * width, 4))
        self.numbers = digits.contiguous().view(2 * count, width)


class Value:
    """What never changes, so that a copy of it is itself."""

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self


class Whole(Value):
    """A matrix of whole numbers [N, K] from -127 to 127 with a scale for each of its rows."""

    def __init__(self, codes: Tensor, scales: Tensor) -> None:
        self.shape = codes.shape
        self.scales = scales.float().contiguous()
        self._zeros = torch.zeros(len(codes), dtype=torch.int64)
        self._packed = torch.ops.onednn.qlinear_prepack(codes.contiguous(), None)

    def __call__(self, rows: Tensor) -> Tensor:
        """[R, N] of rows [R, K]."""
        digits = Digits(rows.float())
        matrix = (self._packed, self.scales, self._zeros, None)
        result = (1.0, 0, torch.float32, "none", [], "")
        found = torch.ops.onednn.qlinear_pointwise(digits.numbers, 1.0, MIDDLE, *matrix, *result)
        low, high = found.chunk(2)
        return torch.add(low, high, alpha=DIGIT).mul_(digits.scale)

    def plain(self) -> Tensor:
        """The matrix [N, K] that this stands for: its products with unit vectors, which lose nothing."""
        return self(torch.eye(self.shape[1])).T.contiguous()


class Nibbles(Value):
    """A matrix of 4-bit numbers, in groups along each row, that is one of whole numbers as well.

    The scale of a group is its row's, times a whole number of 4 bits: so number times multiplier fits into 8 bits, and
    many rows are computed by the product for 8 bits, which knows no groups. A few rows are computed from half the
    bytes by PyTorch's fused kernel, in bfloat16; it is asked as long as it is the faster one.
    """

    few = 2

    def __init__(self, numbers: Tensor, multipliers: Tensor, scales: Tensor) -> None:
        """numbers: [N, K] from -8 to 7; multipliers: [N, K / GROUP] from -15 to 15; scales: [N] of 4 binary digits."""
        count = len(numbers)
        spread = multipliers.repeat_interleave(GROUP, dim=1)
        self.whole = Whole(numbers * spread, scales)
        self.shape = self.whole.shape
        spare = -count % 64  # rows that the kernel takes at once
        padded = nn.functional.pad(numbers.to(torch.int32) + 8, (0, 0, 0, spare))
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(padded, 1)
        steps = nn.functional.pad((multipliers * scales[:, None]).T, (0, spare))
        self._steps = torch.stack([steps, torch.zeros_like(steps)], dim=-1).bfloat16().contiguous()

    def __call__(self, rows: Tensor) -> Tensor:
        """[R, N] of rows [R, K]."""
        if len(rows) > self.few:
            return self.whole(rows)
        found = torch.ops.aten._weight_int4pack_mm_for_cpu(rows.bfloat16(), self._packed, GROUP, self._steps)
        return found[:, : self.shape[0]].float()

    def plain(self) -> Tensor:
        """The matrix [N, K] that this stands for."""
        return self.whole.plain()


Matrix = Whole | Nibbles


@cache
def lacking() -> str | None:
    """Why products in whole numbers cannot be had here; None where they can."""
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (64, 96), generator=draw, dtype=torch.int8)
    codes[:8] = 127  # with activations at their largest, what overflows 16 bits shows
    rows = torch.randn(5, 96, generator=draw, dtype=torch.float64)
    rows[0] = 1.0
    try:
        found = Whole(codes, torch.ones(64))(rows)
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        return f"this PyTorch has no such products here ({str(error).splitlines()[0]})"
    expected = rows @ codes.double().T
    off = float((found - expected).abs().max() / expected.abs().max())
    return None if off < 1e-4 else f"this processor's are not exact (off by {off:.2g})"
