"""Parquet: rows by row group and batch, so that memory does not grow with the file."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tunesmith.core.problem import Problem
from tunesmith.core.records import Place
from tunesmith.data.files.base import MAX_ROW, Found, RawRow, too_long
from tunesmith.data.files.opening import chunks

BATCH_ROWS = 256
MAX_GROUP = 2**33
"""The most bytes a row group may unpack to."""


def read_parquet(path: Path, name: str, packing: str) -> Iterator[Found]:
    """The rows of a Parquet file; `line` of a place is the row's number, from 1.

    Raises:
        Problem: no Parquet file, damaged, or with an absurdly large row group.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _seekable(path, packing) as file:
        try:
            table: Any = pq.ParquetFile(file)
            _refuse_bomb(path, table)
            number = 0
            for batch in table.iter_batches(batch_size=BATCH_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield _row(values, Place(name, number))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise Problem(str(path), f"is no sound Parquet file ({error})", "Fetch or write it again") from error


def _row(values: dict[str, Any], place: Place) -> Found:
    if sum(len(value) for value in values.values() if isinstance(value, str)) > MAX_ROW:
        return too_long(place, "")
    return RawRow(values, place)


def _refuse_bomb(path: Path, table: Any) -> None:
    for group in range(table.metadata.num_row_groups):
        size = table.metadata.row_group(group).total_byte_size
        if size > MAX_GROUP:
            raise Problem(
                str(path),
                f"row group {group} unpacks to {size:,} bytes; at most {MAX_GROUP:,} are read at once",
                "Write the file again with smaller row groups",
            )


@contextmanager
def _seekable(path: Path, packing: str) -> Generator[IO[bytes]]:
    """The file itself, or a temporary unpacked copy: Parquet is read from its end."""
    with tempfile.TemporaryFile() if packing else path.open("rb") as file:
        if packing:
            for chunk in chunks(path, packing):
                file.write(chunk)
            file.seek(0)
        yield file
