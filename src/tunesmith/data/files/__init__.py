"""Files of rows: what kind a file is, and its rows one at a time.

path ─▶ kind and packing by its name ─▶ encoding by its first bytes ─▶ RawRow | Rejected, each with its place
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith.core.problem import Problem
from tunesmith.data.files.base import Found, RawRow
from tunesmith.data.files.encoding import Encoding, find_encoding
from tunesmith.data.files.opening import regular

__all__ = ["KINDS", "DataFile", "Found", "RawRow", "describe", "kind_of", "read"]

KINDS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
    ".conll": "conll",
    ".iob": "conll",
    ".bio": "conll",
}
"""The kind of a file by its suffix."""
PACKINGS = {".gz": "gz", ".zst": "zst"}
"""The packing of a file by the suffix after that."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of rows: where it is, how it is called in reports, and how it is read."""

    path: Path
    name: str
    kind: str
    packing: str = ""
    encoding: Encoding | None = None


def kind_of(name: str) -> tuple[str, str] | None:
    """The kind and packing that a file name says, or None for a name that says nothing."""
    path = Path(name.lower())
    packing = PACKINGS.get(path.suffix, "")
    path = Path(path.stem) if packing else path
    inner = KINDS.get(Path(path.stem).suffix) if path.suffix == ".txt" else None
    kind = inner if inner == "conll" else KINDS.get(path.suffix)
    return (kind, packing) if kind else None


def describe(path: Path, name: str) -> DataFile:
    """What a file is; its encoding is found from its content.

    Raises:
        Problem: no regular file, of no known kind, or unreadable.
    """
    regular(path)
    kind = kind_of(path.name)
    if kind is None:
        known = ", ".join(KINDS)
        raise Problem(
            name,
            f"{path.suffix or 'no suffix'} is no kind of file that holds rows",
            f"Known: {known}; each also packed as .gz or .zst",
        )
    encoding = None if kind[0] == "parquet" else find_encoding(path, kind[1])
    return DataFile(path, name, *kind, encoding)


def read(file: DataFile, note: Callable[[str], None]) -> Iterator[Found]:
    """The rows of a file, streaming; every row gives exactly one item. `note` is told what a person should know.

    Raises:
        Problem: the file is damaged so that its rows cannot be told apart.
    """
    path, name, packing = file.path, file.name, file.packing
    encoding = file.encoding or Encoding()
    if file.kind == "json":
        from tunesmith.data.files.json_rows import read_json

        return read_json(path, name, packing, encoding, note)
    if file.kind in ("csv", "tsv"):
        from tunesmith.data.files.table import read_table

        return read_table(path, name, packing, encoding, note, file.kind == "tsv")
    if file.kind == "conll":
        from tunesmith.data.files.conll import read_conll

        return read_conll(path, name, packing, encoding)
    if file.kind == "parquet":
        from tunesmith.data.files.parquet import read_parquet

        return read_parquet(path, name, packing)
    from tunesmith.data.files.text import read_text

    return read_text(path, name, packing, encoding, note)
