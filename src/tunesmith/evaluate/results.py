"""Results: what an evaluation found out, as plain data that is saved, printed and shown."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.core.rundir import write_atomic
from tunesmith.evaluate.figures import Figure
from tunesmith.evaluate.outcome import Better, Confusion, Sample, Shown


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: one measure of every column that has it. verdict: what tuned against base comes to."""

    name: str
    shown: Shown
    better: Better
    figures: Mapping[str, Figure]
    verdict: str = ""

    def cells(self, columns: tuple[str, ...]) -> list[str]:
        """The figures as text, a dash where a column has none."""
        return [cell(self.figures.get(column), self.shown) for column in columns]


@dataclass(frozen=True, slots=True)
class Section:
    """One way of measuring over its rows. best, worst: samples by the last model's scores."""

    name: str
    rows: int
    table: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    confusion: Mapping[str, Confusion] = field(default_factory=dict[str, Confusion])
    best: tuple[Sample, ...] = ()
    worst: tuple[Sample, ...] = ()


@dataclass(frozen=True, slots=True)
class Results:
    """All of an evaluation. columns: models first (base before tuned), then baselines; findings: sentences."""

    target: str
    columns: tuple[str, ...]
    sections: tuple[Section, ...]
    findings: tuple[str, ...]
    language: str
    settings: Mapping[str, Any]
    fingerprints: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """The results as plain data; figures that are no finite numbers are null."""
        return _finite(asdict(self))

    def save(self, folder: Path) -> tuple[Path, Path]:
        """Write `results.json` and `report.html`, and return where they are."""
        from tunesmith.evaluate.report import page

        data, html = folder / "results.json", folder / "report.html"
        write_atomic(data, (json.dumps(self.plain(), ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode())
        write_atomic(html, page(self).encode())
        return data, html

    def lines(self) -> list[tuple[str, ...]]:
        """The one table for a terminal: a heading, then a line a measure with its interval and verdict."""
        out = [("", *self.columns, "")]
        for section in self.sections:
            out += [(row.name, *row.cells(self.columns), row.verdict) for row in section.table]
        return out


def cell(figure: Figure | None, shown: Shown) -> str:
    """A figure with its interval, such as `81.2 % (77.5–84.4)`."""
    if figure is None or math.isnan(figure.value):
        return "–"
    if shown == "percent":
        return f"{100 * figure.value:.1f} % ({100 * figure.low:.1f}–{100 * figure.high:.1f})"
    return f"{number(figure.value)} ({number(figure.low)}–{number(figure.high)})"


def number(value: float) -> str:
    """A number as short as people read it: four figures, or none after the point where there are many before it."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
