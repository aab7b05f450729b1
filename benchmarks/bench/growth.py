"""Cost over size, both on logarithmic scales, beside the straight line of cost in proportion: a panel a group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.plot import COLOURS, LIMIT, written
from bench.table import Group, Told

FOUND, IN_PROPORTION = COLOURS["ours"], LIMIT


def draw(groups: Sequence[Group], file: Path) -> None:
    """Draw groups beside each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(groups), 3.6), layout="constrained")
    for group, axis in zip(groups, figure.subplots(1, len(groups), squeeze=False)[0], strict=True):
        panel(axis, group)
    written(figure, file)


def points(sides: Iterable[Told], figure: str, across: str = "size") -> list[tuple[float, float]]:
    """(size, median of a figure) of the sides that have both, the smallest first."""
    pairs = [(side.median(across), side.median(figure)) for side in sides]
    return sorted((size, value) for size, value in pairs if size and value)


def panel(axis: Any, group: Group) -> None:
    """Medians as a line, rounds as dots; the line of cost in proportion begins at the smallest size."""
    sizes, costs = zip(*points(group.sides, "cost", group.across), strict=True)
    axis.plot(sizes, [costs[0] * size / sizes[0] for size in sizes], ":", color=IN_PROPORTION, label="in proportion")
    axis.plot(sizes, costs, "-", color=FOUND, label=f"to the power {group.facts['exponent']:.2f}")
    dots = [(told[group.across], told["cost"]) for side in group.sides for told in side.rounds if told]
    axis.plot(*zip(*dots, strict=True), "o", color=FOUND, markersize=4)
    unit = next((column.en for column in group.columns if column.figure == "cost"), "CPU s")
    axis.set(xscale="log", yscale="log", xlabel=group.name, ylabel=unit)
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
