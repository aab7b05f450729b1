"""Products with a matrix in whole numbers: 8 bits a weight, activations in one or two digits of 8 bits.

    x  ≈  s · (256 · hi + lo)        two digits: s = max |x| of a row / 32512, both in [-128, 127]
    x  ≈  s · hi                     one digit:  s = max |x| of a row / 127
    y  =  s · (256 · hi Wᵀ + lo Wᵀ) · r                  W in [-127, 127], r a scale for each output

Two digits keep 16 bits of an activation, so the weights' rounding is all that differs from the plain product; one is
half the work and loses what rows with outliers hold in their small numbers. The whole-number products are oneDNN's,
with the matrix packed once; what is done to digits and to products beside is done a block of rows at a time, which
stays in the processor's cache.

Processors without VNNI add two products up in 16 bits, which holds no more than 2 · 127 · 127: there a digit has 7 bits
(`NARROW`: 128 for 256, 63 for 127), and two keep 14. What is exact on a machine is found by trying.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

Digits = Literal[1, 2]
BLOCK = 512
"""Rows whose two digits are held at once."""
CACHED = 1 << 17
"""Numbers of a block that is worked on in the cache."""
FEW = 32
"""Rows that are computed in few operations instead of few bytes."""
_LEAST = 1e-30
_TINY = torch.tensor(_LEAST)


class Digit(NamedTuple):
    """A whole number from -base / 2 to base / 2 - 1, in a byte whose `middle` is zero."""

    base: int

    @property
    def middle(self) -> int:
        return self.base // 2

    def largest(self, digits: Digits) -> int:
        """What the largest number of a row becomes."""
        return (self.middle - 1) * self.base ** (digits - 1)


WIDE = Digit(256)
NARROW = Digit(128)


class Value:
    """What never changes, so that a copy of it is itself."""

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self


class Rounded(NamedTuple):
    """Rows in one digit: bytes [R, K], scales [R, 1]."""

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

    def __init__(self, codes: Tensor, scales: Tensor, digit: Digit | None = None) -> None:
        """digit: of its products' rows; the widest that is exact here if none is given."""
        self.shape = codes.shape
        self.scales = scales.float().contiguous()
        self.digit = digit or widest()
        self._zero = torch.tensor(self.digit.middle * (self.digit.base + 1) + 0.5)  # in two digits; a cast cuts off
        self._zeros = torch.zeros(len(codes), dtype=torch.int64)
        self._packed = torch.ops.onednn.qlinear_prepack(codes.contiguous(), None)

    def __call__(self, rows: Tensor, digits: Digits = 2) -> Tensor:
        """[R, N] of rows [R, K] in float32."""
        if digits == 2 and len(rows) <= FEW:
            return self._few(rows.float())
        if digits == 1:
            return self.of(rounded(rows, self.digit))
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
        base, largest, most = self.digit.base, self.digit.largest(2), _largest(rows)
        low = torch.mul(rows, largest / most)
        high = torch.mul(low, 1 / base).round_()
        low.sub_(high, alpha=base).round_().clamp_(max=self.digit.middle - 1)
        found = self._product(torch.cat([low, high]))
        torch.add(found[: len(rows)], found[len(rows) :], alpha=base, out=out).mul_(most / largest)

    def _few(self, rows: Tensor) -> Tensor:
        """Two digits, from the bytes of whole numbers of 32 bits."""
        base = self.digit.base
        scale = torch.add(_TINY, rows.abs().amax(-1, keepdim=True), alpha=1 / self.digit.largest(2))
        whole = torch.addcdiv(self._zero, rows, scale).to(torch.int32)
        if base < WIDE.base:
            whole += whole & -base  # the upper digit moves into the next byte
        count, width = rows.shape
        # a number lies in memory as its digits, the lowest first, on every machine that has these products
        digits = whole.view(torch.uint8).as_strided((2, count, width), (1, 4 * width, 4))
        low, high = self.bytes(digits.contiguous().view(2 * count, width)).chunk(2)
        return torch.add(low, high, alpha=base).mul_(scale)

    def _product(self, digits: Tensor) -> Tensor:
        """[R, N] of digits [R, K] times the scales of the matrix."""
        return self.bytes(digits.to(torch.int8).view(torch.uint8).add_(self.digit.middle))

    def bytes(self, digits: Tensor, zero: int | None = None) -> Tensor:
        """The same of bytes, of which `zero` is zero, by default a digit's."""
        middle = self.digit.middle if zero is None else zero
        return torch.ops.onednn.qlinear_pointwise(  # type: ignore[no-any-return]
            digits, 1.0, middle, self._packed, self.scales, self._zeros, *_PLAINLY
        )


_PLAINLY = (None, 1.0, 0, torch.float32, "none", [], "")
"""No bias, a product as float32, and nothing behind it."""


def rounded(rows: Tensor, digit: Digit, by: Tensor | None = None) -> Rounded:
    """Rows [R, K] in one digit; by: numbers [K] that they are multiplied by before."""
    digits = torch.empty(rows.shape, dtype=torch.int8)
    scales = torch.empty(len(rows), 1)
    size, largest = fitting(rows.shape[1]), digit.largest(1)
    room = torch.empty(min(size, len(rows)), rows.shape[1])
    for part, place, scale in zip(rows.float().split(size), digits.split(size), scales.split(size), strict=True):
        own = room[: len(part)]
        if by is not None:
            part = torch.mul(part, by, out=own)
        scale.copy_(_largest(part))
        place.copy_(torch.mul(part, largest / scale, out=own).round_())
    return Rounded(digits.view(torch.uint8).add_(digit.middle), scales.div_(largest))


def rounded_at_once(rows: Tensor, digit: Digit, by: Tensor | None = None) -> Rounded:
    """What `rounded` gives, without blocks: for a compiler, which needs none."""
    rows = rows.float() if by is None else rows * by
    scales = rows.abs().amax(-1, keepdim=True).clamp_min(_LEAST)
    digits = (rows * (digit.largest(1) / scales)).round().add(digit.middle).to(torch.uint8)
    return Rounded(digits, scales / digit.largest(1))


def fitting(width: int) -> int:
    """How many rows of some width fit the cache."""
    return max(1, CACHED // width)


def _largest(rows: Tensor) -> Tensor:
    """[R, 1] the largest |x| of each row; tiny where all are zero."""
    return torch.maximum(rows.amax(-1, keepdim=True), rows.amin(-1, keepdim=True).neg_()).clamp_min_(_LEAST)


def lacking() -> str | None:
    """Why products in whole numbers cannot be had here; None where they can."""
    found = _found()
    return found if isinstance(found, str) else None


def widest() -> Digit:
    """The widest digit whose products are exact here.

    Raises:
        RuntimeError: there is none, as `lacking` says.
    """
    found = _found()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


@cache
def _found() -> Digit | str:
    """The widest digit whose products are exact here, or why there is none."""
    faults = {digit: fault(digit) for digit in (WIDE, NARROW)}
    return next((digit for digit, why in faults.items() if why is None), str(faults[NARROW]))


def fault(digit: Digit) -> str | None:
    """Why products with a digit cannot be had here; None where they can."""
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (64, 96), generator=draw, dtype=torch.int8)
    codes[:8] = 127  # with activations at their largest, what overflows 16 bits shows
    rows = torch.randn(5, 96, generator=draw, dtype=torch.float64)
    rows[0] = 1.0
    try:
        found = Whole(codes, torch.ones(64), digit)(rows)
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        return f"this PyTorch has no such products here ({str(error).splitlines()[0]})"
    expected = rows @ codes.double().T
    off = float((found - expected).abs().max() / expected.abs().max())
    return None if off < 1e-4 * WIDE.base / digit.base else f"this processor's are not exact (off by {off:.2g})"
