"""A batch is a forest: one long row of tokens with a small tree over it. Padding is never computed.

    tokens   [ prompt ........ | chosen .... | rejected .. | prompt ..... | answer ... ]
    segment        0                 1             2              3             4
    parent        None               0             0             None           3

A segment attends causally to itself and wholly to its ancestors, to nothing else; positions go on from the parent.
A target says: read the hidden state at `source`, the right next token is `token`. So the head and the cross-entropy
are computed only where something is learned, and the last token of a shared prompt predicts the first token of
several answers. A mark says: read the hidden state here, a value belongs to it.

    tokens   [ a text .... | one beside it .... | another one .. ]        texts that are compared have no prompt:
    parent       None              None                None               each is a root, and `sizes` says 3

    tokens   [ system ... | a prompt ... | its answer .. | another .... | its answer .. ]   what rows have in common
    parent      None             0               1              0               3           may stand there once

Models that cannot take a forest get `Batch.padded()`, the same rows one below the other; objectives never know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


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
    def kept(self) -> dict[Any, Any]:
        """What a kernel of attention found out about the tree, for all layers."""
        return {}

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
    leaves [R]: the segment each answer ends in; values: a number an answer [R] (such as a label), or several [R, W],
    or one a mark [K]; marks [K]: the tokens that something is read at; mark_rows [K]: the answer each belongs to;
    rows: the corpus' number of each row; sizes: how many answers each has; notes: the text that goes with each;
    extras: what `prepare` added, by name.
    """

    tokens: Tensor
    positions: Tensor
    segments: tuple[Segment, ...]
    targets: Targets
    leaves: tuple[int, ...]
    values: Tensor
    marks: Tensor
    mark_rows: Tensor
    rows: tuple[int, ...]
    sizes: tuple[int, ...]
    notes: tuple[str, ...]
    extras: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def answers(self) -> int:
        """R, the number of paths from a root to a leaf."""
        return len(self.leaves)

    @cached_property
    def row_tokens(self) -> int:
        """Tokens of the rows: what several of them share counts for each."""
        lines: list[set[int]] = [set() for _ in self.sizes]
        owners = [row for row, size in enumerate(self.sizes) for _ in range(size)]
        for owner, leaf in zip(owners, self.leaves, strict=True):
            lines[owner].update(_line(self.segments, leaf))
        return sum(self.segments[part].stop - self.segments[part].start for line in lines for part in line)

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
            marks=self.marks.to(device),
            mark_rows=self.mark_rows.to(device),
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
        roots = [(*above, own)[0].start for above, own in zip(self.layout.ancestors, self.segments, strict=True)]
        own = [segment.stop - segment.start for segment in self.segments]
        trees: Counter[int] = Counter()
        for root, length in zip(roots, own, strict=True):
            trees[root] += length
        sizes = torch.tensor([trees[root] for root in roots])
        return torch.repeat_interleave(sizes, torch.tensor(own), output_size=len(self)).to(self.tokens.device)

    def path(self, segment: int) -> Tensor:
        """The tokens from the root to the end of a segment."""
        parts = (*self.layout.ancestors[segment], self.segments[segment])
        return torch.cat([self.tokens[part.start : part.stop] for part in parts])


def by_row(batch: Batch, values: Tensor) -> Tensor:
    """Sum what belongs to each answer: values [M] over targets to [R], with the targets' weights."""
    out = values.new_zeros(batch.answers)
    return out.index_add(0, batch.targets.row, values * batch.targets.weight)


def keep(batch: Batch, answers: Sequence[int]) -> Batch:
    """The batch with some of its answers alone, given in their order, and what each of them goes on from.

    A trunk's own targets stay where its first answer does. Marks are not taken along; extras are those of answers [R].
    """
    alive = sorted({part for answer in answers for part in _line(batch.segments, batch.leaves[answer])})
    number = {old: new for new, old in enumerate(alive)}
    kept = [batch.segments[part] for part in alive]
    index = torch.cat([torch.arange(part.start, part.stop) for part in kept]).to(batch.tokens.device)
    stops = np.cumsum([part.stop - part.start for part in kept]).tolist()
    chosen = torch.tensor(list(answers), device=batch.tokens.device)
    owner = [row for row, size in enumerate(batch.sizes) for _ in range(size)]
    counts = Counter(owner[answer] for answer in answers)
    return Batch(
        tokens=batch.tokens[index],
        positions=batch.positions[index],
        segments=tuple(
            Segment(start, stop, None if part.parent is None else number[part.parent])
            for part, start, stop in zip(kept, [0, *stops], stops, strict=False)
        ),
        targets=_kept_targets(batch, index, chosen),
        leaves=tuple(number[batch.leaves[answer]] for answer in answers),
        values=batch.values[chosen],
        marks=batch.marks[:0],
        mark_rows=batch.mark_rows[:0],
        rows=tuple(batch.rows[row] for row in counts),
        sizes=tuple(counts.values()),
        notes=tuple(batch.notes[row] for row in counts),
        extras={name: value[chosen] for name, value in batch.extras.items()},
    )


def _line(segments: Sequence[Segment], segment: int | None) -> Iterator[int]:
    """A segment and the ones above it."""
    while segment is not None:
        yield segment
        segment = segments[segment].parent


def _kept_targets(batch: Batch, index: Tensor, answers: Tensor) -> Targets:
    """The targets of some answers, where the tokens at `index` are all that is left."""
    place = torch.full_like(batch.tokens, -1)
    place[index] = torch.arange(len(index), device=index.device)
    row = batch.tokens.new_full((batch.answers,), -1)
    row[answers] = torch.arange(len(answers), device=index.device)
    targets = batch.targets
    stay = row[targets.row] >= 0
    return Targets(place[targets.source[stay]], targets.token[stay], row[targets.row[stay]], targets.weight[stay])
