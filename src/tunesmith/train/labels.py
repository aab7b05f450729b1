"""Labels of a run's training rows, found before its data is prepared, since rows are made by them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import cast

from tunesmith.core.records import Labelled, Tagged
from tunesmith.core.run import Run
from tunesmith.data.sources import open_source
from tunesmith.models.source import Found, head_of
from tunesmith.objectives import Objective


def resolve_labels(run: Run, found: Found, base: Path) -> tuple[Run, tuple[str, ...]]:
    """The run with an objective that leaves nothing open, and sentences for a person; base: where its paths start.

    Raises:
        Problem: the rows have no labels that can be learned, or others than the model's head.
    """
    objective, told = cast(Objective, run.objective).resolved(head_of(found), lambda: label_counts(run, base))
    return run.model_copy(update={"objective": objective}), told


def label_counts(run: Run, base: Path) -> Counter[str]:
    """How often each label, or tag, occurs in the rows of a run's data; rows that cannot be read have none."""
    counts: Counter[str] = Counter()
    for spec in run.data:
        for source in open_source(spec, base):
            for record in source.records():
                if isinstance(record, Labelled):
                    counts.update(record.labels)
                elif isinstance(record, Tagged):
                    counts.update(record.tags)
    return counts
