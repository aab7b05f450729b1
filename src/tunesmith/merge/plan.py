"""The plan of a merge: what is read and written, and what disk and memory that takes, before a weight is read."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunesmith.merge.child import Child
from tunesmith.merge.engine import HELD, measures
from tunesmith.merge.layout import Piece
from tunesmith.merge.numbers import WORDS
from tunesmith.merge.output import ShardFile

PROCESS = 120_000_000
"""Bytes of the process itself, as seen."""
COPIES = 4
"""How many copies of a block in float32 a method holds at most beside one for each model, as seen."""


@dataclass(frozen=True)
class Plan:
    """One merge as it would be done; sizes in bytes."""

    stage: str
    method: str
    models: Mapping[str, int]
    tensors: int
    layers: int
    written: int
    files: int
    types: Sequence[str]
    memory: int
    free: int
    notes: Sequence[str]

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Names and values for a person."""
        read = [(f"reads {name}", megabytes(size)) for name, size in self.models.items()]
        result = f"{self.tensors:,} tensors, {self.layers} layers, {' and '.join(self.types)}"
        return [
            (f"stage {self.stage}" if self.stage else "merge", f"{self.method} of {len(self.models)} models"),
            *read,
            ("result", result),
            ("writes", f"{megabytes(self.written)} in {self.files} {'file' if self.files == 1 else 'files'}"),
            ("disk", f"{megabytes(self.free)} free"),
            ("memory", f"about {megabytes(self.memory)}"),
            *(("note", note) for note in self.notes),
        ]


def plan_of(child: Child, shards: Sequence[ShardFile], output: Path, threads: int) -> Plan:
    """The plan of one recipe whose models are open."""
    layout = child.layout
    recipe = layout.recipe
    types = {WORDS.get(piece.stored, piece.stored.lower()) for piece in child.pieces}
    return Plan(
        recipe.stage or "",
        recipe.method.name(),
        {str(model): model.bytes for model in layout.models},
        len(child.pieces),
        len(layout.layers),
        sum(shard.size for shard in shards),
        len(shards),
        sorted(types),
        memory_of(child.pieces, threads),
        shutil.disk_usage(present(output)).free,
        [*differences(child), *(layout.vocabulary.lines if layout.vocabulary else ())],
    )


def differences(child: Child) -> list[str]:
    """Settings in which the models' configurations differ; the result has those of one of them."""
    donor = child.layout.donor
    told: list[str] = []
    for key in ("rope_theta", "rope_parameters", "rope_scaling", "rms_norm_eps", "hidden_act", "sliding_window"):
        values = {str(model): model.config.get(key) for model in child.layout.models}
        if any(value != values[str(donor)] for value in values.values()):
            shown = ", ".join(f"{value} in {name}" for name, value in values.items())
            told.append(f"{key} differs ({shown}); the result has that of {donor}")
    return told


def present(path: Path) -> Path:
    """The nearest folder above a path that exists."""
    while not path.exists():
        path = path.absolute().parent
    return path


def megabytes(size: int) -> str:
    """A size in MB or GB for a person."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def memory_of(pieces: Sequence[Piece], threads: int) -> int:
    """Bytes that so many threads need at the largest piece, with the process itself."""
    return PROCESS + threads * max(_memory(piece) for piece in pieces)


def _memory(piece: Piece) -> int:
    """Bytes of one block at work, and of the stored numbers that are kept for all passes over the piece."""
    row = math.prod(piece.shape[1:]) if len(piece.shape) > 1 else max((*piece.shape, 1))
    stored = piece.bytes * len(piece.parts) if measures(piece.method) else 0
    kept = stored if stored <= HELD else 0
    return piece.block_rows * row * np.dtype(piece.kind).itemsize * (len(piece.parts) + COPIES) + kept
