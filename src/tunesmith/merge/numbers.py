"""Number types of stored weights: bits from a file to numbers to compute with, and back, each rounded once.

bfloat16 is the upper half of a float32, so reading it is a shift; writing it rounds to the nearest, ties to even, by
adding 0x7FFF and the last bit that stays before the lower half is cut off.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.merge.methods import Array

Bits = NDArray[Any]

STORED: dict[str, type[np.generic]] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
"""Types of safetensors files that are read, as numpy holds their bits."""

FLOATS = ("F64", "F32", "BF16", "F16")
"""Those that can be merged, the widest first; all others are copied."""

WORDS = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Their names in config.json."""


def promoted(types: set[str]) -> str:
    """The narrowest type that holds numbers of all these types: float32 for bfloat16 and float16 together."""
    return next(iter(types)) if len(types) == 1 else "F64" if "F64" in types else "F32"


def decode(bits: Bits, stored: str, kind: type[np.floating[Any]]) -> Array:
    """The numbers of stored bits, in `kind` (float32 or float64); an array of their own, for methods overwrite it."""
    if stored == "BF16":
        wide = bits.astype(np.uint32)
        return np.left_shift(wide, 16, out=wide).view(np.float32).astype(kind, copy=False)
    return bits.astype(kind)


def encode(numbers: Array, stored: str) -> Bits:
    """The bits of finite numbers in a stored type, rounded once."""
    if stored != "BF16":
        with np.errstate(over="ignore"):
            return numbers.astype(STORED[stored], copy=False)
    wide = _to_single(numbers).view(np.uint32)
    rounded = np.right_shift(wide, 16)
    rounded &= 1
    rounded += wide
    rounded += 0x7FFF
    return np.right_shift(rounded, 16, out=rounded).astype(np.uint16)


def _to_single(numbers: Array) -> NDArray[np.float32]:
    """Float64 to float32 such that rounding on to bfloat16 is still one rounding: odd where anything was lost."""
    with np.errstate(over="ignore"):
        single = numbers.astype(np.float32, copy=False)
    if numbers.dtype == np.float64:
        bits = single.view(np.int32)
        lost = single.astype(np.float64) != numbers
        away = np.abs(single.astype(np.float64)) > np.abs(numbers)
        bits -= (lost & away).astype(np.int32)
        bits |= lost.astype(np.int32)
    return single


def finite(bits: Bits, stored: str) -> bool:
    """Whether no stored number is infinite or not a number."""
    if stored == "BF16":
        return bool((bits & np.uint16(0x7FFF)).max(initial=0) < 0x7F80)
    return bool(np.isfinite(bits).all())
