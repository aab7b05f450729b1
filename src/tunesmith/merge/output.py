"""The merged model on disk: files in a staging folder beside it, which takes its name when all is complete and proven.

    .OUT.merging/
      .lock                     held while a merge works here
      NAME.safetensors.part     a file at work: its whole size is taken at once, so a full disk is told before the work
      NAME.safetensors          a finished file
      merging.json              what is merged, and size and time of each finished file

A merge that was stopped or killed goes on from its finished files, if recipe and inputs are still the same.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from tunesmith.core import rundir
from tunesmith.core.problem import Problem
from tunesmith.core.rundir import sync_file, sync_folder, write_json
from tunesmith.merge.layout import Piece
from tunesmith.merge.numbers import Bits

NOTES = "merging.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


@dataclass
class ShardFile:
    """One file of the result: the place of each of its pieces, and the open file while it is written."""

    folder: Path
    name: str
    pieces: Sequence[Piece]
    header: bytes
    starts: dict[str, int]
    size: int
    handle: int = -1
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def part(self) -> Path:
        return self.folder / f"{self.name}.part"

    def write(self, piece: Piece, row: int, bits: Bits) -> None:
        """Write bits at a row of a piece."""
        with self.lock:
            if self.handle < 0:
                self._start()
        width = math.prod(piece.shape[1:]) * bits.itemsize
        _put(self.handle, np.ascontiguousarray(bits).data.cast("B"), self.starts[piece.name] + row * width)

    def finish(self) -> None:
        """Sync the file and give it its name."""
        if self.handle < 0:
            self._start()
        os.fsync(self.handle)
        os.close(self.handle)
        self.handle = -1
        self.part.replace(self.folder / self.name)
        sync_folder(self.folder)

    def _start(self) -> None:
        self.handle = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.handle, 0, self.size)
        _put(self.handle, memoryview(self.header), 0)


def shard_files(folder: Path, pieces: Sequence[Piece], limit: int) -> tuple[ShardFile, ...]:
    """The files of the result, none larger than `limit` bytes unless one tensor is."""
    groups: list[list[Piece]] = [[]]
    size = 0
    for piece in pieces:
        if groups[-1] and size + piece.bytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(piece)
        size += piece.bytes
    names = ["model.safetensors"]
    if len(groups) > 1:
        names = [f"model-{number:05}-of-{len(groups):05}.safetensors" for number in range(1, len(groups) + 1)]
    return tuple(_shard(folder, name, group) for name, group in zip(names, groups, strict=True))


def _shard(folder: Path, name: str, pieces: Sequence[Piece]) -> ShardFile:
    """The header: its length in 8 bytes, then JSON of types, shapes and places, filled up to a multiple of 8."""
    about: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for piece in pieces:
        about[piece.name] = {
            "dtype": piece.stored,
            "shape": list(piece.shape),
            "data_offsets": [place, place + piece.bytes],
        }
        place += piece.bytes
    text = json.dumps(about, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    starts = {piece.name: len(header) + about[piece.name]["data_offsets"][0] for piece in pieces}
    return ShardFile(folder, name, pieces, header, starts, len(header) + place)


class Staging:
    """The folder where a merged model is put together."""

    def __init__(self, output: Path, key: str, pieces: Sequence[Piece], limit: int) -> None:
        """key: what says that finished files of an earlier start are still those of this merge."""
        self.output = output
        self.folder = staging_of(output)
        self.key = key
        self.shards = shard_files(self.folder, pieces, limit)
        self.finished: dict[str, list[int]] = {}
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(shard.size for shard in self.shards)

    def resume(self) -> tuple[str, ...]:
        """Keep the finished files of an earlier start if they are of this very merge and whole, and remove the rest."""
        notes = _notes(self.folder / NOTES)
        known: dict[str, list[int]] = notes["files"] if notes["key"] == self.key else {}
        for shard in self.shards:
            file = self.folder / shard.name
            if shard.name in known and file.is_file() and _mark(file) == known[shard.name]:
                self.finished[shard.name] = known[shard.name]
        for file in self.folder.iterdir():
            if file.name not in {".lock", "stages", *self.finished}:
                shutil.rmtree(file) if file.is_dir() else file.unlink()
        self._note()
        return tuple(self.finished)

    def unfinished(self) -> list[ShardFile]:
        """The files that are still to be written."""
        return [shard for shard in self.shards if shard.name not in self.finished]

    def finish(self, shard: ShardFile) -> None:
        """Make a written file durable and note it."""
        shard.finish()
        with self._lock:
            self.finished[shard.name] = _mark(self.folder / shard.name)
            self._note()

    def write_index(self) -> None:
        """The index of several files, as transformers reads it."""
        if len(self.shards) > 1:
            weights = {piece.name: shard.name for shard in self.shards for piece in shard.pieces}
            total = sum(piece.bytes for shard in self.shards for piece in shard.pieces)
            value = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weights.items()))}
            write_json(self.folder / "model.safetensors.index.json", value)

    def publish(self) -> None:
        """Give the folder its name; nothing of the work is left in it."""
        (self.folder / NOTES).unlink(missing_ok=True)
        shutil.rmtree(self.folder / "stages", ignore_errors=True)
        for file in self.folder.iterdir():
            sync_file(file)
        sync_folder(self.folder)
        (self.folder / ".lock").unlink(missing_ok=True)
        self.folder.rename(self.output)
        sync_folder(self.output.parent)

    def _note(self) -> None:
        write_json(self.folder / NOTES, {"key": self.key, "files": self.finished})


def staging_of(output: Path) -> Path:
    """The folder beside an output in which it is put together."""
    return output.with_name(f".{output.name}.merging")


@contextlib.contextmanager
def held(output: Path) -> Generator[Path]:
    """The staging folder of an output, held against a second merge; what the disk refuses is said in words.

    Raises:
        Problem: the output exists, another merge works on it, or the disk is full or may not be written.
    """
    if output.exists() or output.is_symlink():
        raise Problem(str(output), "exists already", "Choose another folder for the merged model, or remove this one")
    folder = staging_of(output)
    with _in_words(output):
        folder.mkdir(parents=True, exist_ok=True)
        busy = Problem(str(output), "another merge is writing it right now", "Wait for it to end")
        with rundir.held(folder, busy):
            if output.exists() or not folder.is_dir():  # the other merge ended in between
                raise busy
            yield folder


@contextlib.contextmanager
def _in_words(output: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(_present(output)).free / 1e6
        if error.errno in FULL:
            what = f"the disk is full ({free:,.1f} MB free), so the merge stopped; its finished files are kept"
            raise Problem(str(output), what, "Free some space and start it again: it goes on from them") from error
        if error.errno in FORBIDDEN:
            what = f"cannot be written ({os.strerror(error.errno or 0).lower()})"
            raise Problem(str(output), what, "Choose another folder, or its rights") from error
        if error.errno == errno.ENOENT and not staging_of(output).is_dir():
            what = f"the folder of the work ({staging_of(output).name}) was removed while it was in use"
            raise Problem(str(output), what, "Start the merge again") from error
        raise


def check_room(staging: Staging) -> None:
    """Refuse what cannot fit.

    Raises:
        Problem: the disk has less room than the files that are still to be written.
    """
    needed = sum(shard.size for shard in staging.unfinished())
    free = shutil.disk_usage(_present(staging.output)).free
    if needed > free:
        what = f"needs {needed / 1e6:,.1f} MB, and the disk has {free / 1e6:,.1f} MB free"
        raise Problem(str(staging.output), what, "Free some space, or choose a folder on another disk")


def _mark(file: Path) -> list[int]:
    about = file.stat()
    return [about.st_size, about.st_mtime_ns]


def _present(path: Path) -> Path:
    while not path.exists():
        path = path.absolute().parent
    return path


def _notes(file: Path) -> dict[str, Any]:
    """What an earlier start noted; nothing if it was stopped before it could."""
    try:
        found = cast("dict[str, Any]", json.loads(file.read_text()))
        return {"key": found["key"], "files": found["files"]}
    except (OSError, ValueError, KeyError):  # not there, or not ours: the files are made anew
        return {"key": "", "files": {}}


def _put(handle: int, content: memoryview, start: int) -> None:
    while content:
        count = os.pwrite(handle, content, start)
        content, start = content[count:], start + count
