"""A batch is a forest: one long row of tokens with a small tree over it. Padding is never computed.

    tokens   [ prompt ........ | chosen .... | rejected .. | prompt ..... | answer ... ]
    segment        0                 1             2              3             4
    parent        None               0             0             None           3

A segment attends causally to itself and wholly to its ancestors, to nothing else; positions go on from the parent.
A target says: read the hidden state at `source`, the right next token is `token`. So the head and the cross-entropy
are computed only where something is learned, and the last token of a shared prompt predicts the first token of
several answers.

Models that cannot take a forest get `Batch.padded()`, the same rows one below the other; objectives never know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tunesmith.core.rows import Piece, TokenRow


class Segment(NamedTuple):
    """A run of tokens [start, stop) that goes on from `parent`, another segment's number, or is a root."""

    start: int
    stop: int
    parent: int | None


@dataclass(frozen=True, slots=True)
class Targets:
    """What is learned: read the hidden state at `source`, the right next token is `token`.

    source [M]: index into the batch's tokens; token [M]; row [M]: the answer it belongs to; weight [M].
    """

    source: Tensor
    token: Tensor
    row: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class Layout:
    """The tree of a batch as attention needs it.

    past: for each layer keys and values [1, G, n, D] that stand before those of every root, at positions 0 to n - 1.
    """

    segments: tuple[Segment, ...]
    positions: Tensor
    past: tuple[tuple[Tensor, Tensor], ...] = ()

    @cached_property
    def ancestors(self) -> tuple[tuple[Segment, ...], ...]:
        """For each segment the ones above it, root first."""
        out: list[tuple[Segment, ...]] = []
        for segment in self.segments:
            above = () if segment.parent is None else (*out[segment.parent], self.segments[segment.parent])
            out.append(above)
        return tuple(out)

    @property
    def past_length(self) -> int:
        """n, the keys that stand before those of every root."""
        return self.past[0][0].shape[2] if self.past else 0

    @cached_property
    def _masks(self) -> dict[tuple[int, int | None], Tensor]:
        return {}

    def mask(self, number: int, window: int | None) -> Tensor | None:
        """Which keys each query of a segment sees, [queries, past + ancestors' + own keys]; None means plain causal."""
        segment, above = self.segments[number], self.ancestors[number]
        path = self.past_length + sum(part.stop - part.start for part in (*above, segment))
        if window is not None and path <= window:
            window = None
        if not above and not self.past and window is None:
            return None
        key = (number, window)
        if key not in self._masks:
            self._masks[key] = self._draw(segment, above, window)
        return self._masks[key]

    def _draw(self, segment: Segment, above: Sequence[Segment], window: int | None) -> Tensor:
        own = self.positions[segment.start : segment.stop]
        past = torch.arange(self.past_length, device=own.device)
        keys = torch.cat([past, *(self.positions[part.start : part.stop] for part in (*above, segment))])
        behind = own[:, None] - keys[None, :]
        return behind >= 0 if window is None else (behind >= 0) & (behind < window)


@dataclass(frozen=True, slots=True)
class Padded:
    """The same rows one below the other, each from its root to its leaf, padded on the right.

    tokens [R, L]; mask [R, L]: 1 where there is a token.
    """

    tokens: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Batch:
    """One long row of tokens, the tree over it and what is learned from it.

    tokens [N]; positions [N]: distance from the root; segments: in the order of their tokens, parents first;
    leaves [R]: the segment each answer ends in; values [R]: a number an answer (such as a label);
    rows: the corpus' number of each tree; extras: what `prepare` added, by name.
    """

    tokens: Tensor
    positions: Tensor
    segments: tuple[Segment, ...]
    targets: Targets
    leaves: tuple[int, ...]
    values: Tensor
    rows: tuple[int, ...]
    extras: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def answers(self) -> int:
        """R, the number of paths from a root to a leaf."""
        return len(self.leaves)

    @cached_property
    def layout(self) -> Layout:
        return Layout(self.segments, self.positions)

    @cached_property
    def ends(self) -> Tensor:
        """[R] index of the last token of each answer."""
        return torch.tensor([self.segments[leaf].stop - 1 for leaf in self.leaves], device=self.tokens.device)

    def with_extra(self, name: str, value: Tensor) -> Batch:
        """The batch with one more thing that `prepare` found out."""
        return replace(self, extras={**self.extras, name: value})

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        targets = Targets(*(getattr(self.targets, name).to(device) for name in ("source", "token", "row", "weight")))
        return replace(
            self,
            tokens=self.tokens.to(device),
            positions=self.positions.to(device),
            targets=targets,
            values=self.values.to(device),
            extras={name: value.to(device) for name, value in self.extras.items()},
        )

    def padded(self, filler: int = 0) -> Padded:
        """Every path from a root to a leaf as a row of its own."""
        paths = [self.path(leaf) for leaf in self.leaves]
        longest = max(len(path) for path in paths)
        tokens = torch.full((len(paths), longest), filler, dtype=torch.long, device=self.tokens.device)
        mask = torch.zeros_like(tokens)
        for number, path in enumerate(paths):
            tokens[number, : len(path)] = path
            mask[number, : len(path)] = 1
        return Padded(tokens, mask)

    def tree_lengths(self) -> Tensor:
        """[N] for each token the length of the tree it stands in."""
        roots = [s.start for s in self.segments if s.parent is None] + [len(self)]
        sizes = torch.tensor([stop - start for start, stop in pairwise(roots)])
        return torch.repeat_interleave(sizes, sizes, output_size=len(self)).to(self.tokens.device)

    def path(self, segment: int) -> Tensor:
        """The tokens from the root to the end of a segment."""
        parts = (*self.layout.ancestors[segment], self.segments[segment])
        return torch.cat([self.tokens[part.start : part.stop] for part in parts])


def plant(rows: Sequence[TokenRow]) -> Batch:
    """A batch of token rows: each row a tree, its answers numbered in order."""
    trees = _Planting()
    for row in rows:
        trees.add(row)
    return trees.batch([row.index for row in rows])


class _Planting:
    """Collects pieces into the long row of a batch."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.starts: list[int] = []
        self.segments: list[Segment] = []
        self.leaves: list[int] = []
        self.values: list[float] = []
        self.targets: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        self.length = 0

    def add(self, row: TokenRow) -> None:
        root = self._segment(row.trunk, None, 0)
        self._learn(row.trunk, root, before=None)
        for branch in row.branches:
            self.leaves.append(self._segment(branch, root, len(row.trunk)))
            self._learn(branch, self.leaves[-1], before=self.segments[root].stop - 1)
        if not row.branches:
            self.leaves.append(root)
        self.values.extend(row.values or (0.0,) * row.answers)

    def batch(self, rows: Sequence[int]) -> Batch:
        source, token, answer, weight = (np.concatenate(part) for part in zip(*self.targets, strict=True))
        positions = [np.arange(len(p)) + start for p, start in zip(self.pieces, self.starts, strict=True)]
        return Batch(
            tokens=torch.from_numpy(np.concatenate([piece.tokens for piece in self.pieces]).astype(np.int64)),
            positions=torch.from_numpy(np.concatenate(positions)),
            segments=tuple(self.segments),
            targets=Targets(*(torch.from_numpy(part) for part in (source, token, answer, weight))),
            leaves=tuple(self.leaves),
            values=torch.tensor(self.values, dtype=torch.float32),
            rows=tuple(rows),
        )

    def _segment(self, piece: Piece, parent: int | None, position: int) -> int:
        self.segments.append(Segment(self.length, self.length + len(piece), parent))
        self.pieces.append(piece)
        self.starts.append(position)
        self.length += len(piece)
        return len(self.segments) - 1

    def _learn(self, piece: Piece, segment: int, before: int | None) -> None:
        """Note the targets of a piece; `before` is the token that predicts its first one.

        A trunk's targets belong to the first of its answers.
        """
        learned = np.flatnonzero(piece.weights)
        if before is None:
            learned = learned[learned > 0]
        start = self.segments[segment].start
        source = np.where(learned == 0, -1 if before is None else before, start + learned - 1)
        answer = np.full(len(learned), max(0, len(self.leaves) - (before is not None)))
        self.targets.append((source, piece.tokens[learned].astype(np.int64), answer, piece.weights[learned]))


def by_row(batch: Batch, values: Tensor) -> Tensor:
    """Sum what belongs to each answer: values [M] over targets to [R], with the targets' weights."""
    out = values.new_zeros(batch.answers)
    return out.index_add(0, batch.targets.row, values * batch.targets.weight)
