"""Digits of products in whole numbers, as tests allow for them; the fixture `digit` gives each that is exact here."""

from __future__ import annotations

from tunesmith.models.whole import NARROW, WIDE, Digit

EACH = {"wide": WIDE, "narrow": NARROW}


def coarser(digit: Digit, digits: int) -> float:
    """How many times the errors of as many wide digits its errors are, at most."""
    return WIDE.largest(digits) / digit.largest(digits)  # type: ignore[arg-type]
