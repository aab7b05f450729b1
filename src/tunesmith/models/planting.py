"""Planting: token rows into the forest of a batch.

    rows ─▶ what they share (`data/prefixes`) ─▶ their trunks ─▶ their branches ─▶ tokens, segments, targets

A piece becomes a segment where its first row is planted, so parents stand before what goes on from them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tunesmith.core.rows import Piece, TokenRow
from tunesmith.data.prefixes import Shared, deepest, shared
from tunesmith.models.forest import Batch, Segment, Targets


def plant(rows: Sequence[TokenRow], *, share: bool = False) -> Batch:
    """A batch of token rows: each row a tree, or texts of their own; its answers are numbered in order.

    share: whether context that rows have in common at their start stands there once, above all of them.
    """
    trees = _Planting(shared(rows) if share else ())
    for number, row in enumerate(rows):
        trees.add(row, number)
    return trees.batch(rows)


class _Planting:
    """Collects pieces into the long row of a batch."""

    def __init__(self, found: Sequence[Shared]) -> None:
        """found: what rows share, by their numbers."""
        self.found = found
        self.last = deepest(found)
        self.planted: dict[int, int] = {}
        self.pieces: list[Piece] = []
        self.starts: list[int] = []
        self.segments: list[Segment] = []
        self.leaves: list[int] = []
        self.marks: list[int] = []
        self.mark_rows: list[int] = []
        self.targets: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        self.length = 0

    def add(self, row: TokenRow, number: int) -> None:
        self.marks.extend(self.length + mark for mark in row.marks)
        self.mark_rows.extend([len(self.leaves)] * len(row.marks))
        root = self._trunk(row.trunk, self.last.get(number)) if len(row.trunk) else None
        for branch in row.branches:
            before = None if root is None else self.segments[root].stop - 1
            leaf = self._segment(branch, root, len(row.trunk))
            self._learn(branch, leaf, before)
            self.leaves.append(leaf)
        if root is not None and not row.branches:
            self.leaves.append(root)

    def batch(self, rows: Sequence[TokenRow]) -> Batch:
        source, token, answer, weight = (np.concatenate(part) for part in zip(*self.targets, strict=True))
        positions = [np.arange(len(p)) + start for p, start in zip(self.pieces, self.starts, strict=True)]
        return Batch(
            tokens=torch.from_numpy(np.concatenate([piece.tokens for piece in self.pieces]).astype(np.int64)),
            positions=torch.from_numpy(np.concatenate(positions)),
            segments=tuple(self.segments),
            targets=Targets(*(torch.from_numpy(part) for part in (source, token, answer, weight))),
            leaves=tuple(self.leaves),
            values=_values(rows),
            marks=torch.tensor(self.marks, dtype=torch.long),
            mark_rows=torch.tensor(self.mark_rows, dtype=torch.long),
            rows=tuple(row.index for row in rows),
            sizes=tuple(row.answers for row in rows),
            notes=tuple(row.note for row in rows),
        )

    def _trunk(self, trunk: Piece, last: int | None) -> int:
        """The segment that a trunk ends in; last: the number of the last run that it shares."""
        above = None if last is None else self._shared(trunk, last)
        start = 0 if last is None else self.found[last].stop
        rest = _part(trunk, start, None)
        root = self._segment(rest, above, start) if above is None or len(rest) else above
        self._learn(rest, root, None if above is None else self.segments[above].stop - 1)
        return root

    def _shared(self, trunk: Piece, last: int) -> int:
        """The segment of a shared run, planted with those above it where it is not yet."""
        missing: list[int] = []
        number: int | None = last
        while number is not None and number not in self.planted:
            missing.append(number)
            number = self.found[number].parent
        for number in reversed(missing):
            start, stop, parent, _ = self.found[number]
            above = None if parent is None else self.planted[parent]
            self.planted[number] = self._segment(_part(trunk, start, stop), above, start)
        return self.planted[last]

    def _segment(self, piece: Piece, parent: int | None, position: int) -> int:
        self.segments.append(Segment(self.length, self.length + len(piece), parent))
        self.pieces.append(piece)
        self.starts.append(position)
        self.length += len(piece)
        return len(self.segments) - 1

    def _learn(self, piece: Piece, segment: int, before: int | None) -> None:
        """Note the targets of a piece; `before` is the token that predicts its first one.

        They belong to the answer that comes next: a branch's to its own, a trunk's to the first of its answers.
        """
        learned = np.flatnonzero(piece.weights)
        if before is None:
            learned = learned[learned > 0]
        start = self.segments[segment].start
        source = np.where(learned == 0, -1 if before is None else before, start + learned - 1)
        answer = np.full(len(learned), len(self.leaves))
        self.targets.append((source, piece.tokens[learned].astype(np.int64), answer, piece.weights[learned]))


def _part(piece: Piece, start: int, stop: int | None) -> Piece:
    return Piece(piece.tokens[start:stop], piece.weights[start:stop])


def _values(rows: Sequence[TokenRow]) -> Tensor:
    """The values of rows: [R], or [R, W] where an answer has several, or [K] for marks; zero where a row has none.

    Raises:
        ValueError: rows of different widths, or some with marks and some with values of answers.
    """
    widths = {row.width for row in rows if row.values} or {1}
    if len(widths) > 1 or len({bool(row.marks) for row in rows if row.values or row.marks}) > 1:
        raise ValueError(f"rows whose values differ in kind cannot stand in one batch (widths {sorted(widths)})")
    width = widths.pop()
    marked = any(row.marks for row in rows)
    places = [len(row.marks) if marked else row.answers for row in rows]
    numbers = [row.values or (0.0,) * (width * place) for row, place in zip(rows, places, strict=True)]
    values = torch.tensor([number for part in numbers for number in part], dtype=torch.float32)
    return values if width == 1 else values.reshape(-1, width)
