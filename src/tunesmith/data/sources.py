"""Sources: from what a run names (a file, a folder, a data set on a hub, a registry's entry) to records.

DataSpec ─▶ open_source ─▶ Source ─▶ records(): Record | Rejected, one for every row
                                        └─▶ convert.py: to the kind of record that the objective takes
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.problem import Problem
from tunesmith.core.records import Record
from tunesmith.data.detect import choose, rename
from tunesmith.data.files import KINDS, DataFile, Found, RawRow, describe, kind_of, read
from tunesmith.data.files.base import CHUNK, excerpt
from tunesmith.data.files.encoding import Encoding
from tunesmith.data.formats import Format, RowFault
from tunesmith.data.oddities import refuse_unwritable
from tunesmith.data.report import Rejected

if TYPE_CHECKING:
    from tunesmith.core.run import DataSpec
    from tunesmith.data.hub import HubTable
    from tunesmith.data.registry import Entry

HEAD_ROWS = 50
"""How many rows the format is found from."""
HEAD_FILES = 16
"""How many files of a folder these rows come from."""
SKIPPED_NAMES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files that describe data sets and hold no rows."""


@dataclass(slots=True)
class Source:
    """Rows of one format, from files or from a hub. `reason` says why this format; `notes` what else to know."""

    spec: DataSpec
    format: Format
    reason: str
    files: tuple[DataFile, ...] = ()
    table: HubTable | None = None
    notes: dict[str, None] = field(default_factory=dict[str, None])

    def records(self) -> Iterator[Record | Rejected]:
        """Every row of the source, in order, as a record or as a rejection.

        Raises:
            Problem: a file is damaged so that its rows cannot be told apart.
        """
        note = self.notes.setdefault
        rows = _rows(self.files, self.table, note)
        for found in islice(rows, self.spec.limit):
            yield found if isinstance(found, Rejected) else self._read(found)

    def fingerprint(self) -> str:
        """SHA-256 over the content of the files and over everything that decides how they are read."""
        digest = hashlib.sha256(json.dumps(self._reading(), sort_keys=True).encode())
        for file in self.files:
            digest.update(f"\0{file.kind}\0{file.packing}\0{file.path.stat().st_size}\0".encode())
            with file.path.open("rb") as stream:
                for chunk in iter(lambda: stream.read(CHUNK), b""):
                    digest.update(chunk)
        return digest.hexdigest()

    @property
    def encoding(self) -> str:
        """The encodings of the files, most frequent first."""
        found = Counter(file.encoding.codec for file in self.files if file.encoding)
        return ", ".join(codec for codec, _ in found.most_common())

    @property
    def encoding_guessed(self) -> bool:
        """Whether an encoding was guessed from the bytes."""
        return any(file.encoding.guessed for file in self.files if file.encoding)

    def _read(self, row: RawRow) -> Record | Rejected:
        try:
            record = self.format.read(rename(row.values, self.spec.columns), row.place)
            refuse_unwritable(record)
            return record
        except RowFault as fault:
            return Rejected(row.place, fault.reason, str(fault), _shown(row.values))

    def _reading(self) -> dict[str, Any]:
        spec = self.spec.model_dump(mode="json", exclude={"path", "format", "tags", "weight", "on_bad_row"})
        content = self.table.fingerprint() if self.table else ""
        return {"spec": spec, "format": self.format.spec(), "table": content}


@dataclass(slots=True)
class _Head:
    """The first readable rows of a source, and how many were rejected on the way to them."""

    rows: list[RawRow] = field(default_factory=list[RawRow])
    rejected: Counter[str] = field(default_factory=Counter[str])
    first: Rejected | None = None


def open_source(spec: DataSpec, base: Path = Path()) -> list[Source]:
    """The sources that a spec names: one, or one for each name of a registry. Relative paths start from `base`.

    Raises:
        Problem: nothing there, no rows, or no format fits; `Problems` for several names of a registry.
    """
    from tunesmith.data.registry import read_registry, split_address

    address = split_address(spec.path)
    if address is None:
        return [_open(spec, base)]
    return [_open_entry(entry, spec.path) for entry in read_registry(spec, base / address[0], address[1])]


def _open(spec: DataSpec, base: Path) -> Source:
    from tunesmith.data.hub import MODELSCOPE, fetch_modelscope, is_hub_id, load_hub

    notes: dict[str, None] = {}
    path = base / Path(spec.path).expanduser()
    if spec.path.startswith(MODELSCOPE):
        path = fetch_modelscope(spec.path.removeprefix(MODELSCOPE), spec.revision)
    elif not os.path.lexists(path) and is_hub_id(spec.path) and kind_of(spec.path) is None:
        return _finish(spec, (), load_hub(spec.path, spec.subset, spec.split, spec.revision), notes)
    if not os.path.lexists(path):
        raise Problem(spec.path, f"there is no such file or folder (looked at {path})", "Check the path")
    if path.is_dir() and (spec.split or spec.subset):
        return _finish(spec, (), load_hub(str(path), spec.subset, spec.split, None), notes)
    _refuse_hub_options(spec)
    files = _files(path, spec.path, notes) if path.is_dir() else (describe(path, spec.path),)
    return _finish(spec, files, None, notes)


def _open_entry(entry: Entry, where: str) -> Source:
    from tunesmith.data.registry import refuse_dropped

    source = _open(entry.spec, Path())
    if entry.named_only:
        rows = [row.values for row in _head(source.files, source.table, source.notes.setdefault).rows]
        refuse_dropped(entry, rows, source.format.name(), where)
    return source


def _refuse_hub_options(spec: DataSpec) -> None:
    for name in ("split", "subset", "revision"):
        if getattr(spec, name) and not (name == "revision" and spec.path.startswith("modelscope:")):
            raise Problem(f"{spec.path}: {name}", "is for data sets on a hub, and this is a file", "Take it out")


def _finish(spec: DataSpec, files: tuple[DataFile, ...], table: HubTable | None, notes: dict[str, None]) -> Source:
    files = tuple(_as_table(file, spec, notes) for file in files)
    head = _head(files, table, notes.setdefault)
    if not head.rows:
        raise _no_rows(spec, files, head)
    if spec.prompt is not None and "{text}" not in spec.prompt:
        raise Problem(f"{spec.path}: prompt", "has no {text} in it, so the text would be lost", "Put {text} into it")
    found, reason = choose([row.values for row in head.rows], spec.path, spec.format, spec.columns, spec.tags)
    return Source(spec, found, reason, files, table, notes)


def _as_table(file: DataFile, spec: DataSpec, notes: dict[str, None]) -> DataFile:
    """A text file that looks like a table, as one, if `columns` names columns that a text has not."""
    from tunesmith.data.files.text import is_table

    if file.kind != "text" or set(spec.columns.values()) <= {"text"}:
        return file
    if not is_table(file.path, file.packing, file.encoding or Encoding()):
        return file
    notes[f"{file.name} is read as a table with tabs, since `columns` names columns of it"] = None
    return replace(file, kind="tsv")


def _rows(files: tuple[DataFile, ...], table: HubTable | None, note: Callable[[str], None]) -> Iterator[Found]:
    return table.read() if table else chain.from_iterable(read(file, note) for file in files)


def _head(files: tuple[DataFile, ...], table: HubTable | None, note: Callable[[str], None]) -> _Head:
    """The first readable rows, from several files where there are several, and what was rejected before them."""
    streams = [table.read()] if table else [read(file, note) for file in files[:HEAD_FILES]]
    head = _Head()
    for stream in streams:
        wanted = len(head.rows) + max(1, HEAD_ROWS // len(streams))
        for found in stream:
            if isinstance(found, Rejected):
                head.first = head.first or found
                head.rejected[found.reason] += 1
            else:
                head.rows.append(found)
            if len(head.rows) >= wanted:
                break
    return head


def _no_rows(spec: DataSpec, files: tuple[DataFile, ...], head: _Head) -> Problem:
    if head.first:
        return all_rejected(spec.path, head.rejected, head.first)
    size = sum(file.path.stat().st_size for file in files)
    what = f"holds no rows ({size:,} bytes of nothing but blank lines or brackets)" if size else "is empty"
    return Problem(spec.path, what, "Give a file that holds rows")


def all_rejected(path: str, reasons: Counter[str], first: Rejected) -> Problem:
    """The one fault of a source without a single usable row, named by its most common reason."""
    reason, count = reasons.most_common(1)[0]
    what = f"none of its {reasons.total():,} rows can be used; {count:,} are rejected as {reason}"
    return Problem(
        path, f"{what}, the first at {first.place}: {first.message}", "Mend the file, or say `format` or `columns`"
    )


def _files(folder: Path, name: str, notes: dict[str, None]) -> tuple[DataFile, ...]:
    """The files of rows in a folder, sorted; what is passed over is counted in a note.

    Raises:
        Problem: none there, or a link that leads outside.
    """
    inside = folder.resolve()
    found: list[Path] = []
    passed = 0
    for top, folders, files in os.walk(folder):
        folders[:] = sorted(inner for inner in folders if not inner.startswith("."))
        for entry in sorted([*folders, *files]):
            path = Path(top) / entry
            _refuse_escape(path, inside)
            if entry in files and kind_of(entry) and entry not in SKIPPED_NAMES and not path.is_symlink():
                found.append(path)
            else:
                passed += entry in files
    kept = _without_prose(found)
    if passed := passed + len(found) - len(kept):
        notes[f"{passed:,} files of the folder hold no rows by their names and are passed over"] = None
    if not kept:
        raise Problem(name, "no file of this folder holds rows", f"Known: {', '.join(KINDS)}")
    described = tuple(
        describe(path, f"{name.rstrip('/')}/{path.relative_to(folder).as_posix()}") for path in sorted(kept)
    )
    return described


def _without_prose(found: list[Path]) -> list[Path]:
    """Texts beside files of rows are about them (README.md), not rows."""
    rows = [path for path in found if (kind_of(path.name) or ("", ""))[0] != "text"]
    return rows or found


def _refuse_escape(path: Path, inside: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(inside):
        raise Problem(str(path), "is a link that leads outside of the folder", "Copy what it names into the folder")


def _shown(values: Mapping[str, Any]) -> str:
    short = {name: value[:200] if isinstance(value, str) else value for name, value in values.items()}
    return excerpt(json.dumps(short, ensure_ascii=False, default=str))
