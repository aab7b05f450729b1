"""TokenStore: token rows on disk, read through memory maps, so that they may be larger than memory.

    FOLDER/
      tokens.i32    every token of every piece, one after the other
      spans.bin     runs of equal weight: start and stop within their piece, weight
      pieces.bin    for each piece, where its tokens and its spans stop
      rows.bin      for each row, where its pieces, values, marks and note stop, its source, place, key and sizes
      values.f32    numbers of answers and marks
      marks.i32     tokens of trunks that something is read at
      notes.utf8    what goes with rows as text
      places.json   the files that places name
      report.json   what came in, what is used, what is not; rejects.jsonl beside it
      manifest.json the sizes and hashes of the files above; written last

A folder without a manifest that fits is no store.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.records import Place
from tunesmith.core.rows import Piece, TokenRow
from tunesmith.core.rundir import sync_folder, write_json

FORMAT = 2
"""The version of this layout and of how rows become tokens; a new one makes old caches unread."""

Array = NDArray[Any]
Numbers = NDArray[np.int64]

TOKEN = np.dtype("<i4")
WEIGHT = np.dtype("<f4")
SPAN = np.dtype([("start", "<i4"), ("stop", "<i4"), ("weight", "<f4")])
PIECE = np.dtype([("tokens", "<i8"), ("spans", "<i8")])
VALUE = np.dtype("<f4")
MARK = np.dtype("<i4")
NOTE = np.dtype("u1")
ROW = np.dtype(
    [
        ("pieces", "<i8"),
        ("values", "<i8"),
        ("marks", "<i8"),
        ("note", "<i8"),
        ("source", "<i4"),
        ("file", "<i4"),
        ("line", "<i8"),
        ("offset", "<i8"),
        ("key", "<u8"),
        ("length", "<i4"),
        ("learned", "<i4"),
        ("depth", "<i4"),
    ]
)
TABLES = {
    "tokens.i32": TOKEN,
    "spans.bin": SPAN,
    "pieces.bin": PIECE,
    "rows.bin": ROW,
    "values.f32": VALUE,
    "marks.i32": MARK,
    "notes.utf8": NOTE,
}
OF_ROWS = {"pieces": "pieces.bin", "values": "values.f32", "marks": "marks.i32", "note": "notes.utf8"}
"""The columns of `rows.bin` that say where a row's part of another table stops."""
OF_PIECES = {"tokens": "tokens.i32", "spans": "spans.bin"}
PLACES = "places.json"
MANIFEST = "manifest.json"
_CHUNK = 1 << 22


@dataclass(slots=True)
class Block:
    """Some rows on their way to disk; stops count within the block."""

    tables: dict[str, Array]
    files: list[str] = field(default_factory=list[str])


def block_of(rows: Sequence[tuple[TokenRow, Place, int, int]]) -> Block:
    """Rows with their place, source and content key as flat tables."""
    files: dict[str, int] = {}
    pieces = [piece for row, *_ in rows for piece in (row.trunk, *row.branches)]
    notes = [row.note.encode() for row, *_ in rows]
    sizes = np.fromiter(map(len, pieces), np.int64, len(pieces))
    weights = _joined([piece.weights for piece in pieces], WEIGHT)
    ends = np.zeros(len(pieces), PIECE)
    ends["tokens"] = np.cumsum(sizes)
    spans, ends["spans"] = _spans(weights, sizes)
    table = np.array(
        [
            (
                *(1 + len(row.branches), len(row.values), len(row.marks), len(note), source),
                *(files.setdefault(place.file, len(files)), place.line, place.offset, key, 0, 0, row.depth),
            )
            for (row, place, source, key), note in zip(rows, notes, strict=True)
        ],
        ROW,
    )
    for name in OF_ROWS:
        table[name] = np.cumsum(table[name])
    table["length"] = _of_rows(sizes, table["pieces"])
    table["learned"] = _of_rows(_learned(weights, sizes, table["pieces"]), table["pieces"])
    tables = {
        "tokens.i32": _joined([piece.tokens for piece in pieces], TOKEN),
        "spans.bin": spans,
        "pieces.bin": ends,
        "rows.bin": table,
        "values.f32": np.array([value for row, *_ in rows for value in row.values], VALUE),
        "marks.i32": np.array([mark for row, *_ in rows for mark in row.marks], MARK),
        "notes.utf8": np.frombuffer(b"".join(notes), NOTE),
    }
    return Block(tables, list(files))


def content_key(rows: Iterable[TokenRow]) -> int:
    """A hash of what a record says; equal records have equal keys, whatever is learned of them."""
    state = hashlib.blake2b(digest_size=8)
    for row in rows:
        for piece in (row.trunk, *row.branches):
            state.update(len(piece).to_bytes(8, "little") + piece.tokens.astype(TOKEN, copy=False).tobytes())
        if row.values:
            state.update(np.array(row.values, VALUE).tobytes())
        if row.marks or row.note:
            state.update(np.array([len(row.marks), *row.marks], MARK).tobytes() + row.note.encode())
    return int.from_bytes(state.digest(), "little")


class StoreWriter:
    """Writes a store into an empty folder, block by block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, IO[bytes]] = {name: (folder / name).open("wb") for name in TABLES}
        self._hashes = {name: hashlib.blake2b(digest_size=16) for name in TABLES}
        self._counts = dict.fromkeys(TABLES, 0)
        self._files: dict[str, int] = {}

    def add(self, block: Block) -> None:
        """Append rows."""
        tables = dict(block.tables)
        tables["rows.bin"] = self._moved(tables["rows.bin"], OF_ROWS)
        tables["pieces.bin"] = self._moved(tables["pieces.bin"], OF_PIECES)
        numbers = np.array([self._files.setdefault(name, len(self._files)) for name in block.files], np.int32)
        if len(tables["rows.bin"]):
            tables["rows.bin"]["file"] = numbers[tables["rows.bin"]["file"]]
        for name, table in tables.items():
            raw = table.tobytes()
            self._open[name].write(raw)
            self._hashes[name].update(raw)
            self._counts[name] += len(table)

    def finish(self, fingerprint: str, others: Sequence[str] = ()) -> None:
        """Make everything durable and write the manifest; others: further files of the folder that belong to it."""
        self.close(durable=True)
        write_json(self._folder / PLACES, list(self._files))
        hashes = {name: state.hexdigest() for name, state in self._hashes.items()}
        hashes |= {name: _hash(self._folder / name) for name in (PLACES, *others)}
        sizes = {name: (self._folder / name).stat().st_size for name in hashes}
        manifest = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "files": {name: {"size": sizes[name], "blake2b": hashes[name]} for name in sorted(hashes)},
        }
        write_json(self._folder / MANIFEST, manifest)
        sync_folder(self._folder)

    def close(self, durable: bool = False) -> None:
        """Close the files; durable: after they are on the disk."""
        for file in self._open.values():
            if durable and not file.closed:
                file.flush()
                os.fsync(file.fileno())
            file.close()

    def _moved(self, table: Array, bases: dict[str, str]) -> Array:
        moved = table.copy()
        for name, base in bases.items():
            moved[name] += self._counts[base]
        return moved


class Rows(Protocol):
    """Token rows by number: a store, a view of one, or a few rows in memory."""

    def __len__(self) -> int: ...

    def row(self, number: int) -> TokenRow:
        """One row, whose `index` is this number."""
        ...

    def place(self, number: int) -> Place:
        """Where the row came from."""
        ...

    @property
    def lengths(self) -> Numbers:
        """Tokens of each row [n], all branches included."""
        ...

    @property
    def sources(self) -> Numbers:
        """The number of the source of each row [n], in the order of the run's data."""
        ...


class TokenStore:
    """Token rows by number; a view shows some of them and shares the files."""

    def __init__(self, tables: dict[str, Array], places: Sequence[str], rows: Numbers | None = None) -> None:
        """rows: the numbers of the rows that are shown, in order; None for all."""
        self._tables = tables
        self._places = places
        self.rows = np.arange(len(tables["rows.bin"])) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def view(self, rows: Numbers) -> TokenStore:
        """The store of these rows of this one [m]."""
        return TokenStore(self._tables, self._places, self.rows[rows])

    def row(self, number: int) -> TokenRow:
        """One row; its `index` is this number, from which `place` tells where it came from."""
        at = int(self.rows[number])
        first, last = self._range("rows.bin", "pieces", at)
        trunk, *branches = [self._piece(piece) for piece in range(first, last)]
        values = tuple(float(value) for value in self._part("values", at))
        marks = tuple(int(mark) for mark in self._part("marks", at))
        note = self._part("note", at).tobytes().decode()
        return TokenRow(trunk, tuple(branches), values=values, index=number, marks=marks, note=note)

    def place(self, number: int) -> Place:
        """Where a row came from."""
        row = self._tables["rows.bin"][int(self.rows[number])]
        return Place(self._places[int(row["file"])], int(row["line"]), int(row["offset"]))

    @cached_property
    def lengths(self) -> Numbers:
        """Tokens of each row [n], all branches included."""
        return self._column("length")

    @cached_property
    def depths(self) -> Numbers:
        """Tokens of the longest path of each row [n]."""
        return self._column("depth")

    @cached_property
    def learned(self) -> Numbers:
        """Learned tokens of each row [n]."""
        return self._column("learned")

    @cached_property
    def sources(self) -> Numbers:
        """The number of the source of each row [n], in the order of the run's data."""
        return self._column("source")

    @cached_property
    def first_values(self) -> NDArray[np.float32]:
        """The first value of each row [n], such as a rating; NaN where a row has none."""
        stops = np.asarray(self._tables["rows.bin"]["values"], np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), stops])[self.rows]
        some = starts < stops[self.rows]
        out = np.full(len(self.rows), np.nan, np.float32)
        out[some] = self._tables["values.f32"][starts[some]]
        return out

    @property
    def keys(self) -> NDArray[np.uint64]:
        """The content key of each row [n]; equal rows have equal keys."""
        return np.asarray(self._tables["rows.bin"]["key"][self.rows], np.uint64)

    def _column(self, name: str) -> Numbers:
        return np.asarray(self._tables["rows.bin"][name][self.rows], np.int64)

    def _part(self, column: str, at: int) -> Array:
        """A row's part of the table that a column of `rows.bin` points into."""
        start, stop = self._range("rows.bin", column, at)
        return self._tables[OF_ROWS[column]][start:stop]

    def _range(self, table: str, column: str, at: int) -> tuple[int, int]:
        stops = self._tables[table][column]
        return (int(stops[at - 1]) if at else 0), int(stops[at])

    def _piece(self, at: int) -> Piece:
        start, stop = self._range("pieces.bin", "tokens", at)
        tokens = np.array(self._tables["tokens.i32"][start:stop], np.int32)
        weights = np.zeros(len(tokens), np.float32)
        start, stop = self._range("pieces.bin", "spans", at)
        for span in self._tables["spans.bin"][start:stop]:
            weights[span["start"] : span["stop"]] = span["weight"]
        return Piece(tokens, weights)


def open_store(folder: Path, fingerprint: str) -> TokenStore | None:
    """The store in a folder; None if there is none, if it is of something else, or if it is damaged."""
    try:
        manifest = cast("dict[str, Any]", json.loads((folder / MANIFEST).read_text("utf-8")))
        if manifest["format"] != FORMAT or manifest["fingerprint"] != fingerprint:
            return None
        for name, about in manifest["files"].items():
            path = folder / name
            if path.stat().st_size != about["size"] or _hash(path) != about["blake2b"]:
                return None
        tables = {name: _mapped(folder / name, dtype) for name, dtype in TABLES.items()}
        return TokenStore(tables, json.loads((folder / PLACES).read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _mapped(path: Path, dtype: np.dtype[Any]) -> Array:
    if path.stat().st_size == 0:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, "r")


def _hash(path: Path) -> str:
    state = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while part := file.read(_CHUNK):
            state.update(part)
    return state.hexdigest()


def _spans(weights: Array, sizes: Numbers) -> tuple[Array, Numbers]:
    """The runs of equal, non-zero weight of pieces, one after the other, and where those of each stop."""
    stops = np.cumsum(sizes)
    edge = np.ones(len(weights), bool)
    edge[1:] = np.diff(weights) != 0
    edge[(stops - sizes)[sizes > 0]] = True
    starts = np.flatnonzero(edge)
    ends = np.append(starts[1:], len(weights))
    learned = weights[starts] != 0
    piece = np.searchsorted(stops, starts[learned], side="right")
    spans = np.zeros(len(piece), SPAN)
    spans["start"] = starts[learned] - (stops - sizes)[piece]
    spans["stop"] = ends[learned] - (stops - sizes)[piece]
    spans["weight"] = weights[starts[learned]]
    return spans, np.searchsorted(piece, np.arange(len(sizes)), side="right")


def _learned(weights: Array, sizes: Numbers, pieces: Numbers) -> Numbers:
    """How many tokens of each piece are targets: all that have a weight, but for the first that has nothing before it.

    pieces: where those of each row stop.
    """
    counted = weights != 0
    starts, firsts = np.cumsum(sizes) - sizes, pieces - np.diff(pieces, prepend=0)
    rootless = np.zeros(len(sizes), bool)
    rootless[firsts] = True
    rootless |= np.repeat(sizes[firsts] == 0, np.diff(pieces, prepend=0))
    counted[starts[rootless & (sizes > 0)]] = False
    return _of_rows(counted, np.cumsum(sizes))


def _of_rows(counts: Array, stops: Numbers) -> Numbers:
    """The sums of stretches of counts that stop there."""
    sums = np.concatenate(([0], np.cumsum(counts)))
    return np.diff(sums[stops], prepend=0)


def _joined(parts: list[Array], dtype: np.dtype[Any]) -> Array:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros(0, dtype)
