"""What an objective leaves open, such as its labels: found before data is prepared, since rows are made by it."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from tunesmith.core.run import Run
from tunesmith.data.labels import find_labels
from tunesmith.models.source import Found, head_of
from tunesmith.objectives import Objective


def resolve_labels(run: Run, found: Found, base: Path) -> tuple[Run, tuple[str, ...]]:
    """The run with an objective that leaves nothing open, and sentences for a person; base: where its paths start.

    Raises:
        Problem: the rows have no labels that can be learned, or others than the model's head.
    """
    objective = cast(Objective, run.objective)

    def counts() -> dict[str, int]:
        return find_labels(run.data, base, objective.takes, objective.head.several)

    objective, told = objective.resolved(head_of(found), counts)
    return run.model_copy(update={"objective": objective}), told
