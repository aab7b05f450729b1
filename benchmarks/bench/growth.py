"""Cost over size, both on logarithmic scales, beside the straight line of cost in proportion: a panel a group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.plot import COLOURS
from bench.table import Group

FOUND, IN_PROPORTION = COLOURS["ours"], "#a23b3b"


def draw(groups: Sequence[Group], file: Path) -> None:
    """Draw groups beside each other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(groups), figsize=(4 * len(groups), 3.6), squeeze=False, layout="constrained")
    for group, axis in zip(groups, axes[0], strict=True):
        panel(axis, group)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def panel(axis: Any, group: Group) -> None:
    """Medians as a line, rounds as dots; the line of cost in proportion begins at the smallest size."""
    pairs = [(side.median(group.across), side.median("cost")) for side in group.sides]
    points = sorted((size, cost) for size, cost in pairs if size and cost)
    sizes, costs = [size for size, _ in points], [cost for _, cost in points]
    size, cost = points[0]
    axis.plot(sizes, [cost * each / size for each in sizes], ":", color=IN_PROPORTION, label="in proportion")
    axis.plot(sizes, costs, "-", color=FOUND, label=f"to the power {group.facts['exponent']:.2f}")
    dots = [(told[group.across], told["cost"]) for side in group.sides for told in side.rounds if told]
    axis.plot(*zip(*dots, strict=True), "o", color=FOUND, markersize=4)
    unit = next((column.en for column in group.columns if column.figure == "cost"), "CPU s")
    axis.set(xscale="log", yscale="log", xlabel=group.name, ylabel=unit)
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
