"""What one way of measuring finds out about one model: figures, one number a row, and what to show of a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith.evaluate.figures import Figure

Shown = Literal["percent", "number"]
Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Measure:
    """One figure of one model.

    shown: as a share or a plain number; better: which way is better; gains [rows]: one number a row, larger is
    better, by which two models are compared row by row; None where a figure has no such parts.
    """

    name: str
    figure: Figure
    shown: Shown = "number"
    better: Better = "higher"
    gains: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Outcome:
    """All that was measured of one model.

    measures: the first is the one that samples are sorted by and verdicts speak of; scores [rows]: one number a row,
    larger is better; answers: what the model says to each row, where it says something.
    """

    measures: tuple[Measure, ...]
    scores: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    answers: tuple[str, ...] = ()
    confusion: Confusion | None = None


@dataclass(frozen=True, slots=True)
class Confusion:
    """counts[i][j]: rows of label i that were taken for label j."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Case:
    """A row as a person sees it: where it stands, what was asked, what is right."""

    place: str
    prompt: str
    reference: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A row with what each model made of it."""

    case: Case
    answers: Mapping[str, str]
    scores: Mapping[str, float]
