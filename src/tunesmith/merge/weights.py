"""The weights of a model on disk, read a few rows at a time.

    model.safetensors, or the shards that the index names ─▶ headers ─▶ Tensor: type, shape, place ─▶ rows ─▶ numbers

Files are read, not mapped: a file that is cut short while it is read is told in words, and what was read leaves memory.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.problem import Problem
from tunesmith.merge.methods import Array
from tunesmith.merge.numbers import STORED, Bits, decode
from tunesmith.models.source import check_files, read_json

MAX_HEADER = 100_000_000
"""Bytes; the format allows no more."""


@dataclass(frozen=True)
class File:
    """An open safetensors file; `mark` is its size and time of change when it was opened."""

    path: Path
    handle: int
    mark: tuple[int, int]

    def read(self, into: NDArray[Any], start: int) -> None:
        """Fill an array with the bytes from `start`.

        Raises:
            Problem: the file ends before.
        """
        left = into.data.cast("B")
        while left:
            count = os.preadv(self.handle, [left], start)
            if count == 0:
                raise _changed(self.path)
            left, start = left[count:], start + count


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file: its stored type, shape, and first byte."""

    file: File
    stored: str
    shape: tuple[int, ...]
    start: int

    @cached_property
    def row_numbers(self) -> int:
        """Numbers in one row: one place of the first axis; a tensor of one axis is one row."""
        return math.prod(self.shape[1:]) if len(self.shape) > 1 else self.numbers

    @property
    def rows(self) -> int:
        return self.shape[0] if len(self.shape) > 1 else 1

    @cached_property
    def kind(self) -> np.dtype[Any]:
        """The stored type as numpy holds it."""
        return np.dtype(STORED[self.stored])

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.numbers * self.kind.itemsize

    def bits(self, first: int, end: int) -> Bits:
        """The stored bits of rows first to end, flat."""
        bits = np.empty((end - first) * self.row_numbers, self.kind)
        if bits.size:
            self.file.read(bits, self.start + first * self.row_numbers * self.kind.itemsize)
        return bits


class Weights:
    """All tensors of a model's folder by name."""

    def __init__(self, folder: Path) -> None:
        """Open the files and read their headers.

        Raises:
            Problem: no safetensors, not complete, or damaged.
        """
        check_files(folder)
        self.folder = folder
        self.files = [_open(path) for path in _paths(folder)]
        self.tensors: dict[str, Tensor] = {}
        self._held: dict[str, Bits] = {}
        for file in self.files:
            self.tensors |= _header(file)

    def read(self, name: str, first: int, end: int, kind: type[np.floating[Any]]) -> Array:
        """Rows first to end of a tensor, in `kind`."""
        tensor = self.tensors[name]
        numbers = decode(self.bits(name, first, end), tensor.stored, kind)
        return numbers.reshape((end - first, *tensor.shape[1:]) if len(tensor.shape) > 1 else tensor.shape)

    def sample(self, name: str, first: int, end: int, step: int, kind: type[np.floating[Any]]) -> Array:
        """Every step-th number of rows first to end of a tensor, flat, in `kind`."""
        return decode(self.bits(name, first, end)[::step], self.tensors[name].stored, kind)

    def bits(self, name: str, first: int, end: int) -> Bits:
        """The stored bits of rows first to end of a tensor, flat; not to be written to."""
        tensor, held = self.tensors[name], self._held.get(name)
        return tensor.bits(first, end) if held is None else held[first * tensor.row_numbers : end * tensor.row_numbers]

    def hold(self, name: str) -> None:
        """Keep a tensor's bits in memory, until they are released, since it will be read more than once."""
        self._held[name] = self.tensors[name].bits(0, self.tensors[name].rows)

    def release(self, name: str) -> None:
        """Let go of a tensor's bits."""
        self._held.pop(name, None)

    def gather(self, name: str, rows: NDArray[np.intp], kind: type[np.floating[Any]]) -> Array:
        """Single rows of a tensor by their numbers, in `kind`."""
        found = np.empty((len(rows), *self.tensors[name].shape[1:]), kind)
        cuts = np.flatnonzero(np.diff(rows) != 1) + 1
        for first, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(rows)], strict=True):
            if end > first:
                found[first:end] = self.read(name, int(rows[first]), int(rows[end - 1]) + 1, kind)
        return found

    def check_unchanged(self) -> None:
        """Raises:
        Problem: a file is no longer what it was when it was opened.
        """
        for file in self.files:
            if _mark(file.handle) != file.mark:
                raise _changed(file.path)

    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            os.close(file.handle)


def _paths(folder: Path) -> Sequence[Path]:
    """The files that make up the model, as transformers chooses them."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        shards = cast("Mapping[str, str]", read_json(index)["weight_map"])
        return [folder / name for name in sorted(set(shards.values()))]
    raise Problem(
        str(folder),
        "holds neither model.safetensors nor model.safetensors.index.json",
        "The folder is not a whole model; save it with transformers' save_pretrained",
    )


def _open(path: Path) -> File:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise Problem(str(path), f"cannot be read ({error.strerror})", "Check its rights") from error
    return File(path, handle, _mark(handle))


def _mark(handle: int) -> tuple[int, int]:
    about = os.fstat(handle)
    return about.st_size, about.st_mtime_ns


def _header(file: File) -> dict[str, Tensor]:
    size = np.zeros(1, "<u8")
    file.read(size, 0)
    length = int(size[0])
    if length > min(MAX_HEADER, file.mark[0]):
        raise _changed(file.path)
    text = np.empty(length, np.uint8)
    file.read(text, 8)
    header = cast("dict[str, Any]", json.loads(text.tobytes()))
    header.pop("__metadata__", None)
    return {name: _tensor(file, name, about, 8 + length) for name, about in header.items()}


def _tensor(file: File, name: str, about: Mapping[str, Any], data: int) -> Tensor:
    if about["dtype"] not in STORED:
        raise Problem(
            str(file.path),
            f"{name} is stored as {about['dtype']}, which is not merged",
            "Take the model with weights in bfloat16, float16 or float32, before it was quantised",
        )
    return Tensor(file, about["dtype"], tuple(about["shape"]), data + int(about["data_offsets"][0]))


def _changed(path: Path) -> Problem:
    return Problem(
        str(path), "was changed or cut short while it was read", "Let whatever writes it end, then merge again"
    )
