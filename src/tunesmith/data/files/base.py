"""What every kind of file yields, and the bounds that keep one row from filling the memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.core.records import Place
from tunesmith.data.report import Rejected

MAX_ROW = 64 * 2**20
"""The longest row, in characters; a longer one is rejected without being held in memory."""
CHUNK = 2**18
"""Bytes read at once."""
EXCERPT = 160
"""How many characters of a rejected row are shown."""


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as its file holds it, before a format has read it."""

    values: Mapping[str, Any]
    place: Place


Found = RawRow | Rejected
"""What stands at a place of a file: a row, or what kept it from being one."""


class RowTooLong(Exception):
    """A row beyond MAX_ROW was met."""


def excerpt(text: str) -> str:
    """The beginning of a row on one line, as it can be shown and stored."""
    short = " ".join(text[: 2 * EXCERPT].split())
    short = short.encode("utf-8", "backslashreplace").decode("utf-8")
    return short if len(short) <= EXCERPT else short[:EXCERPT] + " …"


def too_long(place: Place, start: str) -> Rejected:
    """The rejection of a row beyond MAX_ROW."""
    message = f"the row is longer than {MAX_ROW // 2**20} MiB; split it into several rows"
    return Rejected(place, "row-too-long", message, excerpt(start))
