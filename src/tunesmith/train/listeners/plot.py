"""The plot of a run: loss and validation loss, learning rate and gradient norm, as one PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.core.events import Event, read_events
from tunesmith.core.rundir import RunDir, write_atomic
from tunesmith.train.listeners import Hears, Listener

WINDOW = 0.04
"""Share of the run that the smoothed curve averages over: little lag on short runs, little noise on long ones."""
INK, CURVE, ACCENT, FAINT = "#1f2933", "#2f6fab", "#d1632a", "#c8d3dd"


class Plot(Listener):
    """Draw `plots/loss.png` when the run ends."""

    def open(self, folder: RunDir) -> Hears:
        return _Draws(folder)


class _Draws(Hears):
    def __init__(self, folder: RunDir) -> None:
        self.folder = folder

    def close(self) -> None:
        draw(self.folder)


def draw(folder: RunDir) -> Path | None:
    """Draw the plot of a run from its events; None while there is nothing to draw."""
    events = list(read_events(folder.events))
    steps = [event for event in events if event.kind == "step"]
    if not steps:
        return None
    path = folder.plots / "loss.png"
    write_atomic(path, _picture(steps, [event for event in events if event.kind == "validate"]))
    return path


def smoothed(values: Sequence[float]) -> list[float]:
    """The exponential average of values over a share of them, corrected for its start."""
    keep = 1 - 1 / max(1.0, WINDOW * len(values))
    out: list[float] = []
    total = weight = 0.0
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(total / weight)
    return out


def _picture(steps: list[Event], validations: list[Event]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.4), layout="constrained")
    top, lr, norm = figure.subplot_mosaic([["loss", "loss"], ["lr", "norm"]], height_ratios=[2.2, 1]).values()
    _loss(top, steps, validations)
    _line(lr, steps, "lr", "learning rate")
    _line(norm, steps, "grad_norm", "gradient norm")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _loss(axes: Any, steps: list[Event], validations: list[Event]) -> None:
    numbers, losses = [event.step for event in steps], [event.values["loss"] for event in steps]
    axes.plot(numbers, losses, color=FAINT, linewidth=1, label="each step")
    axes.plot(numbers, smoothed(losses), color=CURVE, linewidth=1.8, label="training loss, smoothed")
    if validations:
        where, found = [event.step for event in validations], [event.values["loss"] for event in validations]
        axes.plot(where, found, "o-", color=ACCENT, markersize=4, label="validation loss")
        lowest = min(range(len(found)), key=found.__getitem__)
        axes.annotate(
            f"lowest {found[lowest]:.3f}",
            (where[lowest], found[lowest]),
            textcoords="offset points",
            xytext=(0, 9),
            ha="right" if lowest else "left",
            color=ACCENT,
        )
    axes.set(xlabel="step", ylabel="loss")
    axes.legend(frameon=False)
    _plain(axes)


def _line(axes: Any, steps: list[Event], name: str, label: str) -> None:
    axes.plot([event.step for event in steps], [event.values[name] for event in steps], color=CURVE, linewidth=1.4)
    axes.set(xlabel="step", ylabel=label)
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.5)
