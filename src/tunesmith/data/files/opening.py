"""Opening files safely: regular files only, decompressed in bounded steps, with decompression bombs refused.

path ─▶ regular file? ─▶ plain | .gz | .zst ─▶ chunks of bytes
"""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tunesmith.core.problem import Problem
from tunesmith.data.files.base import CHUNK

BOMB_BYTES = 2**28
"""Decompressed bytes below which no ratio is suspicious."""
BOMB_RATIO = 200
"""Above BOMB_BYTES, how many bytes one compressed byte may become; real text stays below 100."""
ZSTD_STEP = 2048
"""Compressed bytes given to zstandard at once: at its highest ratio they become 64 MiB."""


def regular(path: Path) -> None:
    """Refuse whatever is no regular file, before opening it could block.

    Raises:
        Problem: not there, not readable, or a folder, pipe, socket or device.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise Problem(str(path), f"cannot be read ({_why(error)})", "Check the path") from error
    if not stat.S_ISREG(mode):
        raise Problem(str(path), "is no regular file (a pipe, a device or a folder)", "Give a file that holds rows")


def chunks(path: Path, packing: str) -> Iterator[bytes]:
    """The bytes of a file in bounded chunks, decompressed; packing: "", "gz" or "zst".

    Raises:
        Problem: unreadable, damaged, cut off, or a decompression bomb.
    """
    regular(path)
    try:
        with path.open("rb") as raw:
            yield from _unpacked(path, raw, packing)
    except OSError as error:
        raise Problem(str(path), f"cannot be read ({_why(error)})", "Check the file") from error


def _unpacked(path: Path, raw: BinaryIO, packing: str) -> Iterator[bytes]:
    if packing == "gz":
        return _bounded(path, raw, _gunzip(path, raw))
    if packing == "zst":
        return _bounded(path, raw, _unzstd(path, raw))
    return iter(lambda: raw.read(CHUNK), b"")


def _bounded(path: Path, raw: BinaryIO, unpacked: Iterator[bytes]) -> Iterator[bytes]:
    size = 0
    for chunk in unpacked:
        size += len(chunk)
        if size > BOMB_BYTES and size > BOMB_RATIO * max(1, raw.tell()):
            raise Problem(
                str(path),
                f"{raw.tell():,} compressed bytes became {size:,}: more than {BOMB_RATIO} for one, which no text does",
                "If you trust the file, unpack it and give the unpacked one",
            )
        yield chunk


def _gunzip(path: Path, raw: BinaryIO) -> Iterator[bytes]:
    try:
        with gzip.GzipFile(fileobj=raw) as file:
            yield from iter(lambda: file.read(CHUNK), b"")
    except EOFError as error:
        raise _cut(path) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise Problem(str(path), f"is no sound gzip file ({error})", "Fetch or pack it again") from error


def _unzstd(path: Path, raw: BinaryIO) -> Iterator[bytes]:
    import zstandard

    try:
        frame = None
        for piece in iter(lambda: raw.read(ZSTD_STEP), b""):
            while piece:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(piece)
                piece = frame.unused_data
                frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise Problem(str(path), f"is no sound zstandard file ({error})", "Fetch or pack it again") from error
    if frame is not None:
        raise _cut(path)


def _cut(path: Path) -> Problem:
    return Problem(str(path), "is cut off: the compressed data ends in the middle", "Fetch or pack it again")


def _why(error: Exception) -> str:
    code = error.errno if isinstance(error, OSError) else None
    return os.strerror(code).lower() if code else str(error)
