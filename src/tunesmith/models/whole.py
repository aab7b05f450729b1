"""Products with a matrix in whole numbers: 8 bits a weight, activations in one or two digits of 8 bits.

    x  ≈  s · (256 · hi + lo)        two digits: s = max |x| of a row / 32512, both in [-128, 127]
    x  ≈  s · hi                     one digit:  s = max |x| of a row / 127
    y  =  s · (256 · hi Wᵀ + lo Wᵀ) · r                  W in [-127, 127], r a scale for each output

Two digits keep 16 bits of an activation, so the weights' rounding is all that differs from the plain product; one is
half the work and loses what rows with outliers hold in their small numbers. The whole-number products are oneDNN's,
with the matrix packed once; what is done to digits and to products beside is done a block of rows at a time, which
stays in the processor's cache.
Whether they are exact on this machine is found by trying, since processors without VNNI add up in 16 bits.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

Digits = Literal[1, 2]
DIGIT = 256
LARGEST = {1: 127, 2: 127 * DIGIT}
"""What the largest number of a row becomes."""
BLOCK = 512
"""Rows whose two digits are held at once."""
CACHED = 1 << 17
"""Numbers of a block that is worked on in the cache."""
FEW = 32
"""Rows that are computed in few operations instead of few bytes."""
MIDDLE = 128
"""Zero, in a byte."""
_LEAST = 1e-30
_TINY = torch.tensor(_LEAST)
_ZERO = torch.tensor(DIGIT * MIDDLE + MIDDLE + 0.5)
"""Zero in both bytes, and half a step more, since a cast cuts off."""


class Value:
    """What never changes, so that a copy of it is itself."""

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self


class Rounded(NamedTuple):
    """Rows in one digit: bytes [R, K] whose `MIDDLE` is zero, scales [R, 1]."""

    digits: Tensor
    scales: Tensor


class Added(NamedTuple):
    """A product of low rank that is added to another: scale * left right, left [R, r], right [r, N]."""

    left: Tensor
    right: Tensor
    scale: float

    def to(self, product: Tensor) -> Tensor:
        """The other with this one added, in its place."""
        return product.addmm_(self.left, self.right, alpha=self.scale)

    def split(self, rows: int) -> list[Added]:
        """The same for parts of the rows."""
        return [self._replace(left=left) for left in self.left.split(rows)]


class Whole(Value):
    """A matrix of whole numbers [N, K] from -127 to 127 with a scale for each of its rows."""

    def __init__(self, codes: Tensor, scales: Tensor) -> None:
        self.shape = codes.shape
        self.scales = scales.float().contiguous()
        self._zeros = torch.zeros(len(codes), dtype=torch.int64)
        self._packed = torch.ops.onednn.qlinear_prepack(codes.contiguous(), None)

    def __call__(self, rows: Tensor, digits: Digits = 2) -> Tensor:
        """[R, N] of rows [R, K] in float32."""
        if digits == 2 and len(rows) <= FEW:
            return self._few(rows.float())
        if digits == 1:
            return self.of(rounded(rows))
        out = rows.new_empty(len(rows), self.shape[0], dtype=torch.float32)
        for part, place in zip(rows.float().split(BLOCK), out.split(BLOCK), strict=True):
            self._block_of_two(part, place)
        return out

    def of(self, rows: Rounded, added: Added | None = None, into: Tensor | None = None) -> Tensor:
        """[R, N] of rows in one digit, with another product added, itself added to `into` where that is given."""
        found = self.bytes(rows.digits)
        out = found if into is None else into
        size = fitting(self.shape[0])
        parts = found.split(size)
        rests = [None] * len(parts) if added is None else added.split(size)
        for part, place, scale, rest in zip(parts, out.split(size), rows.scales.split(size), rests, strict=True):
            if into is None:
                part.mul_(scale)
            else:
                place.addcmul_(part, scale)
            if rest is not None:
                rest.to(place)
        return out

    def plain(self) -> Tensor:
        """The matrix [N, K] that this stands for: its products with unit vectors, which lose nothing."""
        return self(torch.eye(self.shape[1])).T.contiguous()

    def _block_of_two(self, rows: Tensor, out: Tensor) -> None:
        largest = _largest(rows)
        low = torch.mul(rows, LARGEST[2] / largest)
        high = torch.mul(low, 1 / DIGIT).round_()
        low.sub_(high, alpha=DIGIT).round_().clamp_(max=127)
        found = self._product(torch.cat([low, high]))
        torch.add(found[: len(rows)], found[len(rows) :], alpha=DIGIT, out=out).mul_(largest / LARGEST[2])

    def _few(self, rows: Tensor) -> Tensor:
        """Two digits, from the bytes of whole numbers of 32 bits."""
        scale = torch.add(_TINY, rows.abs().amax(-1, keepdim=True), alpha=1 / LARGEST[2])
        whole = torch.addcdiv(_ZERO, rows, scale).to(torch.int32)
        count, width = rows.shape
        # a number lies in memory as its digits, the lowest first, on every machine that has these products
        digits = whole.view(torch.uint8).as_strided((2, count, width), (1, 4 * width, 4))
        low, high = self.bytes(digits.contiguous().view(2 * count, width)).chunk(2)
        return torch.add(low, high, alpha=DIGIT).mul_(scale)

    def _product(self, digits: Tensor) -> Tensor:
        """[R, N] of digits [R, K], whole numbers in [-128, 127], times the scales of the matrix."""
        return self.bytes(digits.to(torch.int8).view(torch.uint8).bitwise_xor_(MIDDLE))

    def bytes(self, digits: Tensor, zero: int = MIDDLE) -> Tensor:
        """The same of bytes, of which `zero` is zero."""
        return torch.ops.onednn.qlinear_pointwise(  # type: ignore[no-any-return]
            digits, 1.0, zero, self._packed, self.scales, self._zeros, *_PLAINLY
        )


_PLAINLY = (None, 1.0, 0, torch.float32, "none", [], "")
"""No bias, a product as float32, and nothing behind it."""


def rounded(rows: Tensor, by: Tensor | None = None) -> Rounded:
    """Rows [R, K] in one digit; by: numbers [K] that they are multiplied by before."""
    digits = torch.empty(rows.shape, dtype=torch.int8)
    scales = torch.empty(len(rows), 1)
    size = fitting(rows.shape[1])
    room = torch.empty(min(size, len(rows)), rows.shape[1])
    for part, place, scale in zip(rows.float().split(size), digits.split(size), scales.split(size), strict=True):
        own = room[: len(part)]
        if by is not None:
            part = torch.mul(part, by, out=own)
        scale.copy_(_largest(part))
        place.copy_(torch.mul(part, LARGEST[1] / scale, out=own).round_())
    return Rounded(digits.view(torch.uint8).bitwise_xor_(MIDDLE), scales.div_(LARGEST[1]))


def rounded_at_once(rows: Tensor, by: Tensor | None = None) -> Rounded:
    """What `rounded` gives, without blocks: for a compiler, which needs none."""
    rows = rows.float() if by is None else rows * by
    scales = rows.abs().amax(-1, keepdim=True).clamp_min(_LEAST)
    digits = (rows * (LARGEST[1] / scales)).round().add(MIDDLE).to(torch.uint8)
    return Rounded(digits, scales / LARGEST[1])


def fitting(width: int) -> int:
    """How many rows of some width fit the cache."""
    return max(1, CACHED // width)


def _largest(rows: Tensor) -> Tensor:
    """[R, 1] the largest |x| of each row; tiny where all are zero."""
    return torch.maximum(rows.amax(-1, keepdim=True), rows.amin(-1, keepdim=True).neg_()).clamp_min_(_LEAST)


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
