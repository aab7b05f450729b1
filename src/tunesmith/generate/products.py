"""Matrices in few bits that answers are computed with: 8 bits (`whole`), or 4 in groups."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tunesmith.models.whole import Value, Whole

GROUP = 32
"""Weights of a row that share a scale in 4 bits."""


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
