"""What the rows of a run are labelled with.

sources ─▶ every record's labels, counted ─▶ in order: by name, or by value where all are numbers
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tunesmith.core.problem import Problem
from tunesmith.core.records import Labelled, Record, Tagged
from tunesmith.core.run import DataSpec
from tunesmith.data.convert import conversions
from tunesmith.data.formats import RowFault
from tunesmith.data.report import Rejected
from tunesmith.data.sources import Source, open_source

MOST_LABELS = 1000
"""So many different labels are the most that a text with one label may have; beyond that they are numbers or texts."""


def find_labels(
    specs: Sequence[DataSpec], base: Path, kind: type[Record] = Labelled, several: bool = False
) -> dict[str, int]:
    """The labels, or tags, of all rows, in the order of their numbers, each with how many rows or words have it.

    kind: Labelled or Tagged; several: whether a text may have any number of labels.

    Raises:
        Problem: a source cannot be read, there are fewer than two labels, or so many that they cannot be labels.
    """
    found: Counter[str] = Counter()
    for source in (source for spec in specs for source in open_source(spec, base)):
        for labels in _labels(source, kind):
            if several or kind is Tagged or len(labels) == 1:
                found.update(labels)
            if len(found) > MOST_LABELS and not (several or kind is Tagged):
                raise _too_many(source, found)
    least = 1 if several else 2
    if len(found) < least:
        what = f"all rows have the label {next(iter(found))!r}" if found else "no row has a label"
        raise Problem(", ".join(spec.path for spec in specs), f"{what}, so there is nothing to tell apart")
    return {label: found[label] for label in in_order(found)}


def in_order(labels: Iterable[str]) -> list[str]:
    """Labels by name, or by value where all of them are numbers."""
    names = sorted(labels)
    if any(_number(name) is None for name in names):
        return names
    return sorted(names, key=lambda name: (_number(name) or 0.0, name))


def _labels(source: Source, kind: type[Record]) -> Iterable[tuple[str, ...]]:
    """The labels of each usable row."""
    for record in source.records():
        if isinstance(record, Rejected):
            continue
        try:
            made = conversions(record, kind, source.spec)
        except RowFault:
            continue  # building the store lists this row with its reason
        for found in made:
            yield found.labels if isinstance(found, Labelled) else found.tags if isinstance(found, Tagged) else ()


def _too_many(source: Source, found: Counter[str]) -> Problem:
    shown = ", ".join(repr(label[:40]) for label in list(found)[:3])
    numbers = all(_number(label) is not None for label in found)
    hint = (
        "They are numbers: take the objective regress" if numbers else "Check which column holds the label (`columns`)"
    )
    return Problem(source.spec.path, f"has more than {MOST_LABELS:,} different labels, such as {shown}", hint)


def _number(label: str) -> float | None:
    try:
        number = float(label)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
