"""The report on data: what came in, what is used, what is not and why, so that no row is lost in silence.

    rows in == rows used + rows rejected

holds for every source and is checked whenever a report is written. Rejected rows go to a rejects file as they are
met; the report itself keeps counts and a few examples, so its size does not grow with the data.
"""

from __future__ import annotations

import json
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any

from tunesmith.core.problem import Problem
from tunesmith.core.records import Place
from tunesmith.core.rundir import write_atomic

EXAMPLES = 3
"""How many rejected rows of each reason the report itself keeps."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot be used: where it stands, a short reason to count by, what was seen, and how it begins."""

    place: Place
    reason: str
    message: str
    excerpt: str

    def plain(self) -> dict[str, Any]:
        """The row as one line of a rejects file."""
        where = {"file": self.place.file, "line": self.place.line, "offset": self.place.offset}
        return {**where, "reason": self.reason, "message": self.message, "excerpt": self.excerpt}


@dataclass(slots=True)
class SourceReport:
    """The account of one source."""

    path: str
    format: str
    why: str
    encoding: str = ""
    encoding_guessed: bool = False
    files: int = 0
    rows_in: int = 0
    used: int = 0
    rejected: Counter[str] = field(default_factory=Counter[str])
    counters: Counter[str] = field(default_factory=Counter[str])
    notes: list[str] = field(default_factory=list[str])
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict[str, list[dict[str, Any]]])

    @property
    def lost(self) -> int:
        """How many rows were rejected, for whatever reason."""
        return self.rejected.total()


class DataReport:
    """The account of all sources of a run: plain data, in and out as JSON.

    rejects: the file that rejected rows are written to, one JSON object a line; None keeps only the examples.
    """

    def __init__(self, rejects: Path | None = None) -> None:
        self.sources: list[SourceReport] = []
        self.rejects = rejects
        self._file: IO[str] | None = None
        if rejects is not None:
            rejects.unlink(missing_ok=True)

    def begin(self, source: SourceReport) -> int:
        """Add a source; the number returned names it in the other calls."""
        self.sources.append(source)
        return len(self.sources) - 1

    def use(self, source: int) -> None:
        """Count a row that is used."""
        account = self.sources[source]
        account.rows_in += 1
        account.used += 1

    def reject(self, source: int, row: Rejected) -> None:
        """Count a row that is not used, and list it in the rejects file."""
        account = self.sources[source]
        account.rows_in += 1
        account.rejected[row.reason] += 1
        kept = account.examples.setdefault(row.reason, [])
        if len(kept) < EXAMPLES:
            kept.append(row.plain())
        if self.rejects is not None:
            self._write(self.rejects, row)

    def add(self, source: int, counter: str, n: int = 1) -> None:
        """Count something else of a source, such as duplicates or over-long rows."""
        self.sources[source].counters[counter] += n

    def close(self) -> None:
        """Finish the rejects file; further rows may still follow."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def check(self) -> None:
        """Raise RuntimeError if any row is unaccounted for: that is a bug of tunesmith, not of the data."""
        for account in self.sources:
            if account.rows_in != account.used + account.lost:
                raise RuntimeError(
                    f"{account.path}: {account.rows_in} rows in, but {account.used} used + {account.lost} rejected"
                )

    def plain(self) -> dict[str, Any]:
        """The report as plain data."""
        self.check()
        sources = [{part.name: getattr(source, part.name) for part in fields(source)} for source in self.sources]
        return {"rejects": str(self.rejects) if self.rejects else None, "sources": deepcopy(sources)}

    def save(self, path: Path) -> None:
        """Write the report as JSON, atomically."""
        self.close()
        text = json.dumps(self.plain(), ensure_ascii=False, indent=2) + "\n"
        write_atomic(path, text.encode("utf-8", "backslashreplace"))

    @classmethod
    def load(cls, path: Path) -> DataReport:
        """The report that `save` wrote.

        Raises:
            Problem: the file is not there or holds no report.
        """
        try:
            value = json.loads(path.read_text("utf-8"))
            report = cls()
            report.sources = [_source_report(source) for source in value["sources"]]
            report.rejects = Path(value["rejects"]) if value["rejects"] else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Problem(str(path), f"is no data report ({error})", "Make one with `tunesmith data check`") from error
        report.check()
        return report

    def lines(self, long: bool = False) -> list[str]:
        """The report for a person: a line a source and a line a reason; `long` adds notes and examples."""
        out = [line for account in self.sources for line in _lines(account, long)]
        if self.rejects is not None and any(account.lost for account in self.sources):
            out.append(f"Rejected rows, each with its place and reason: {self.rejects}")
        return out

    def _write(self, path: Path, row: Rejected) -> None:
        if self._file is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8", errors="backslashreplace")
        self._file.write(json.dumps(row.plain(), ensure_ascii=False) + "\n")


def _source_report(value: dict[str, Any]) -> SourceReport:
    account = SourceReport(**value)
    account.rejected, account.counters = Counter(account.rejected), Counter(account.counters)
    return account


def _lines(account: SourceReport, long: bool) -> list[str]:
    out = [
        f"{account.path}: {_rows(account.rows_in)} in = {account.used:,} used + {account.lost:,} rejected",
        f"  format {account.format}: {account.why}",
    ]
    if account.encoding_guessed:
        out.append(f"  encoding {account.encoding}, which is a guess")
    for reason, count in account.rejected.most_common():
        out.append(f"  {count:,} rejected as {reason}, the first at {_example(account, reason)}")
        if long:
            out += [f"    {_where(row)}: {row['message']}  {row['excerpt']}" for row in account.examples[reason]]
    out += [f"  {name}: {count:,}" for name, count in account.counters.most_common()]
    if long:
        out += [f"  files: {account.files:,}; encoding: {account.encoding or 'none'}"]
    return out + [f"  {note}" for note in account.notes]


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


def _example(account: SourceReport, reason: str) -> str:
    row = account.examples[reason][0]
    return f"{_where(row)}: {row['message']}"


def _where(row: dict[str, Any]) -> str:
    return str(Place(row["file"], row["line"]))
