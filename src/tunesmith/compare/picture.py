"""The plot of a study: quality of each method with every seed as a dot, what learns, and peak memory, side by side."""

from __future__ import annotations

import io
from typing import Any

from tunesmith.compare.table import Entry, Table, shown

INK, CURVE, ACCENT, FAINT = "#1f2933", "#2f6fab", "#d1632a", "#c8d3dd"
ROW_INCHES = 0.36


def picture(table: Table) -> bytes:
    """The plot as PNG: a block of rows for each base, methods best first."""
    from matplotlib.figure import Figure

    bases = [base for base in table.study.bases if table.of_base(base)]
    heights = [len(table.of_base(base)) for base in bases]
    figure = Figure(figsize=(10, 1.1 * len(bases) + ROW_INCHES * sum(heights) + 0.3), layout="constrained")
    axes = figure.subplots(
        len(bases), 3, squeeze=False, sharey="row", height_ratios=heights, width_ratios=(3, 1.3, 1.3)
    )
    for row, base in zip(axes, bases, strict=True):
        _quality(row[0], table, base)
        _bars(row[1], [100 * entry.share for entry in table.of_base(base)], "learns, % of weights", log=True)
        _bars(row[2], [entry.memory / 1e9 for entry in table.of_base(base)], "peak memory, GB")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _quality(axes: Any, table: Table, base: str) -> None:
    entries = table.of_base(base)
    measure = entries[0].trials[0].quality
    scale = 100 if measure.shown == "percent" else 1
    for place, entry in enumerate(entries):
        _dots(axes, place, entry, scale)
    if base in table.before and _near(table.before[base], entries):
        axes.axvline(scale * table.before[base], color=ACCENT, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(entries)), [entry.method for entry in entries])
    axes.set_ylim(len(entries) - 0.5, -0.5)
    unit = f", % ({measure.better} is better)" if scale == 100 else f" ({measure.better} is better)"
    before = f"; untouched: {shown(measure, table.before[base])}" if base in table.before else ""
    axes.set_title(base + before, fontsize=10, color=INK, loc="left")
    _plain(axes, measure.name + unit)


def _dots(axes: Any, place: int, entry: Entry, scale: float) -> None:
    values = [scale * value for value in entry.values]
    axes.plot(values, [place] * len(values), "o", color=CURVE, markersize=4, alpha=0.6)
    axes.plot([scale * entry.mean] * 2, [place - 0.28, place + 0.28], color=INK, linewidth=2)


def _near(before: float, entries: list[Entry]) -> bool:
    """Whether the base's own value can be drawn without crowding the methods together."""
    values = [value for entry in entries for value in entry.values]
    width = max(values) - min(values)
    return min(values) - 2 * width <= before <= max(values) + 2 * width


def _bars(axes: Any, values: list[float], label: str, *, log: bool = False) -> None:
    if log:
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 3, max(100.0, max(values)))
    axes.barh(range(len(values)), values, color=CURVE, height=0.55, left=None)
    axes.tick_params(labelleft=False)
    _plain(axes, label)


def _plain(axes: Any, label: str) -> None:
    axes.set_xlabel(label, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(axis="x", color=FAINT, linewidth=0.5)
