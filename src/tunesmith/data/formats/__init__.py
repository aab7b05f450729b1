"""The contract of formats: how a row of a file becomes a Record. One file a format; the folder is the registry."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from tunesmith.core.plugins import Plugin
from tunesmith.core.records import Place, Record

Row = Mapping[str, Any]


class Format(Plugin):
    """One way in which rows are written."""

    yields: ClassVar[type[Record]]
    """The kind of record that `read` makes."""
    columns: ClassVar[Mapping[str, str]] = {}
    """The parts of a row, {part: help}; `DataSpec.columns` may say which column plays a part."""

    @abstractmethod
    def matches(self, row: Row) -> str | None:
        """Why this row looks like the format, in a few words for a person; None if it does not."""

    @abstractmethod
    def read(self, row: Row, place: Place) -> Record:
        """The record of a row.

        Raises:
            RowFault: the row does not fit; the reason says which part and what was seen.
        """


class RowFault(ValueError):
    """A row that cannot be used. `reason` is a short name to count by, the message says what was seen."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
