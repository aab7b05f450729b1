"""CSV and TSV: the first line names the columns, unless it holds a number, which no name is.

A quoted cell may span lines. A quote that never closes swallows the rest of the file, so its rows cannot be counted:
that is a Problem, not a rejected row.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from tunesmith.core.problem import Problem
from tunesmith.core.records import Place
from tunesmith.data.files.base import MAX_ROW, Found, RawRow, RowTooLong, excerpt
from tunesmith.data.files.encoding import Encoding, Line, is_sound, lines, texts
from tunesmith.data.report import Rejected

HEAD_LINES = 50
"""Lines from which delimiter and quoting are seen."""


def read_table(
    path: Path, name: str, packing: str, encoding: Encoding, note: Callable[[str], None], tabs: bool
) -> Iterator[Found]:
    """The rows of a CSV file, or of a TSV file where `tabs` is set; cells are strings.

    Raises:
        Problem: unreadable, a column named twice, or a quote that never closes.
    """
    stream = (line for line in lines(texts(path, packing, encoding), encoding))
    head = list(islice(stream, HEAD_LINES))
    delimiter = "\t" if tabs else _delimiter(head)
    if not tabs and delimiter != ",":
        note(f"{name} is separated by {delimiter!r}")
    quoted = not tabs or _is_even(head, csv.QUOTE_MINIMAL) or not _is_even(head, csv.QUOTE_NONE)
    if not quoted:
        note(f"{name}: quotes are taken as they are, since the lines do not fit together otherwise")
    return _rows(_Table(name, chain(head, stream), delimiter, quoted), note)


@dataclass(slots=True)
class _Table:
    """Feeds lines to the csv module and knows at which line the record being read began."""

    name: str
    stream: Iterator[Line]
    delimiter: str
    quoted: bool
    first: Line | None = None
    size: int = 0

    def lines(self) -> Iterator[str]:
        for line in self.stream:
            self.first = self.first or line
            self.size += len(line.text)
            if line.cut or self.size > MAX_ROW:
                raise RowTooLong
            yield line.text + "\n"

    def records(self) -> Iterator[tuple[Place, list[str] | csv.Error]]:
        csv.field_size_limit(2 * MAX_ROW)
        quoting = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        reader = csv.reader(self.lines(), delimiter=self.delimiter, quoting=quoting, strict=True)
        while True:
            self.first, self.size = None, 0
            try:
                cells: list[str] | csv.Error = next(reader)
            except StopIteration:
                return
            except RowTooLong as error:
                raise self._endless("is longer than a row may be; perhaps a quote in it never closes") from error
            except csv.Error as error:
                if "unexpected end" in str(error):
                    raise self._endless("opens a quote that never closes") from error
                cells = error
            if cells:
                yield self._place(), cells

    def _place(self) -> Place:
        return Place(self.name, self.first.number, self.first.offset) if self.first else Place(self.name)

    def _endless(self, what: str) -> Problem:
        hint = "Close the quote, or write a quote inside a cell twice"
        return Problem(str(self._place()), f"the row {what}, so the rows after it cannot be told apart", hint)


def _rows(table: _Table, note: Callable[[str], None]) -> Iterator[Found]:
    records = table.records()
    nothing: list[str] = []
    place, header = next(records, (Place(table.name), nothing))
    if isinstance(header, csv.Error):
        raise Problem(str(place), f"the line of column names is no sound CSV ({header})", "Mend it")
    if any(_is_number(cell) for cell in header):
        names = [f"column{number}" for number in range(1, len(header) + 1)]
        note(
            f"{table.name}: the first line is a row, since it holds a number; the columns are called {', '.join(names)}"
        )
        records = chain([(place, header)], records)
    else:
        names = [cell.strip() for cell in header]
        _refuse_twice(names, place)
    for where, cells in records:
        yield _row(where, cells, names)


def _row(place: Place, cells: list[str] | csv.Error, names: list[str]) -> Found:
    if isinstance(cells, csv.Error):
        return Rejected(place, "bad-csv", f"is no sound CSV: {cells}", "")
    shown = excerpt(" | ".join(cell[:200] for cell in cells))
    if not all(map(is_sound, cells)):
        message = "holds bytes that do not fit the file's encoding; save the file as UTF-8"
        return Rejected(place, "bad-encoding", message, shown)
    if len(cells) != len(names):
        return Rejected(place, "wrong-cell-count", f"has {len(cells)} cells for {len(names)} columns", shown)
    values: dict[str, Any] = dict(zip(names, cells, strict=True))
    return RawRow(values, place)


def _refuse_twice(names: list[str], place: Place) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise Problem(str(place), f"the column {twice[0]!r} stands twice", "Give each column a name of its own")


def _delimiter(head: list[Line]) -> str:
    first = next((line.text for line in head if line.text.strip()), "")
    return next((mark for mark in (",", ";", "\t", "|") if mark in first), ",")


def _is_even(head: list[Line], quoting: Literal[0, 3]) -> bool:
    """Whether the first lines of a TSV file all have the same number of cells under a rule of quoting."""
    try:
        rows = list(csv.reader((line.text for line in head), delimiter="\t", quoting=quoting, strict=True))
    except csv.Error:
        return False
    return len({len(row) for row in rows if row}) <= 1


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
