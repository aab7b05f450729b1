"""A bar for each side: the median of what decides, with every round as a dot, and the machine's limit as a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.table import Group, Told

COLOURS = {"ours": "#1f6f8b", "plain": "#8fb8c6", "peer": "#b9b4ad", "other": "#e0ddd8"}
LIMIT = "#a23b3b"


def draw(groups: Sequence[Group], file: Path) -> None:
    """Draw groups below each other; no bar for what could not run."""
    from matplotlib.figure import Figure

    shown = [(group, [side for side in group.sides if side.median(group.measure) is not None]) for group in groups]
    heights = [0.9 + 0.28 * len(sides) for _, sides in shown]
    figure = Figure(figsize=(8, sum(heights)), layout="constrained")
    axes = figure.subplots(len(shown), 1, height_ratios=heights, squeeze=False)
    for (group, sides), axis in zip(shown, axes[:, 0], strict=True):
        _group(axis, group, sides)
    written(figure, file)


def written(figure: Any, file: Path) -> None:
    """Write a picture of matplotlib's where pages show it from."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def _group(axis: object, group: Group, sides: Sequence[Told]) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axis, Axes)
    title = next(column.en for column in group.columns if column.figure == group.measure and not column.ratio)
    for place, side in enumerate(sides):
        value = side.median(group.measure) or 0.0
        axis.barh(place, value, color=COLOURS[side.kind], height=0.7)
        dots = [told[group.measure] for told in side.rounds if told]
        axis.plot(dots, [place] * len(dots), ".", color="#333333", markersize=3)
        axis.text(value, place, f" {value:,.1f}", va="center", fontsize=8)
    if limit := group.facts.get(f"limit_{group.measure}"):
        axis.axvline(limit, color=LIMIT, linewidth=1, linestyle=":")
    axis.set_yticks(range(len(sides)), [side.name for side in sides], fontsize=8)
    axis.invert_yaxis()
    axis.set_title(f"{group.name}: {title}", fontsize=9, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.12)
