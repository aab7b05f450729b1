"""Accounting for rows: every row of every source is read once and either used or listed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.core.problem import Problem
from tunesmith.core.records import Record
from tunesmith.data.oddities import Seen, content_hash, oddities
from tunesmith.data.report import DataReport, Rejected, SourceReport
from tunesmith.data.sources import Source, all_rejected, open_source

if TYPE_CHECKING:
    from tunesmith.core.run import DataSpec

DUPLICATES = "exact duplicates (kept)"
TOLD_EVERY = 2_000


def check(
    specs: Sequence[DataSpec],
    rejects: Path | None = None,
    base: Path = Path(),
    progress: Callable[[int], None] = lambda done: None,
) -> DataReport:
    """Read every row of every source and report on it; rejected rows are listed in `rejects`.

    progress: told now and then how many usable rows were read.

    Raises:
        Problem: a source cannot be opened, or none of its rows can be used.
    """
    report = DataReport(rejects)
    seen = Seen()
    done = 0
    try:
        for source in (source for spec in specs for source in open_source(spec, base)):
            for _ in account(source, begin(source, report), report, seen):
                done += 1
                if done % TOLD_EVERY == 0:
                    progress(done)
    finally:
        report.close()
    report.check()
    return report


def begin(source: Source, report: DataReport) -> int:
    """Open the account of a source; the number names it in the report."""
    return report.begin(
        SourceReport(
            path=source.spec.path,
            format=source.format.name(),
            why=source.reason,
            encoding=source.encoding,
            encoding_guessed=source.encoding_guessed,
            files=len(source.files),
        )
    )


def account(source: Source, number: int, report: DataReport, seen: Seen) -> Iterator[Record]:
    """The usable records of a source, while the report counts every row of it.

    Raises:
        Problem: no row can be used, or one cannot and `on_bad_row` is `stop`.
    """
    first: Rejected | None = None
    for row in source.records():
        if isinstance(row, Rejected):
            first = first or row
            report.reject(number, row)
            if source.spec.on_bad_row == "stop":
                hint = "Mend the row, or set `on_bad_row: quarantine` to go on without such rows"
                raise Problem(str(row.place), f"{row.reason}: {row.message}", hint)
        else:
            report.use(number)
            _count_oddities(row, number, report, seen)
            yield row
    own = report.sources[number]
    own.notes = [*source.notes]
    if seen.full:
        own.notes.append("more different rows than are remembered, so there may be further duplicates")
    if first is not None and not own.used:
        raise all_rejected(source.spec.path, own.rejected, first)


def _count_oddities(record: Record, number: int, report: DataReport, seen: Seen) -> None:
    if seen.add(content_hash(record)):
        report.add(number, DUPLICATES)
    for name in oddities(record):
        report.add(number, name)
