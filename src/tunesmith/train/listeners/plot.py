"""The plot of a run as one PNG: loss and validation loss, learning rate and gradient norm.

Of a run that learns from its own answers: their reward, how far it is from the reference, how long they are.
"""

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
SUPERVISED = {"lr": "learning rate", "grad_norm": "gradient norm"}
ONLINE = {"kl": "KL, nats a token", "entropy": "entropy, nats a token", "length": "tokens an answer"}
"""What is drawn below, the first two that a run tells, each with its label."""
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
    write_atomic(path, _picture(events, steps))
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


def _picture(events: Sequence[Event], steps: list[Event]) -> bytes:
    from matplotlib.figure import Figure

    told = {
        name: label for name, label in (ONLINE if _online(steps) else SUPERVISED).items() if name in steps[0].values
    }
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    top, *below = figure.subplot_mosaic([["top", "top"], ["left", "right"]], height_ratios=[2.2, 1]).values()
    course(top, events)
    for axes, (name, label) in zip(below, told.items(), strict=False):
        _line(axes, steps, name, label)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def course(axes: Any, events: Sequence[Event]) -> None:
    """Draw a run's loss, or its reward, while training and on validation rows, on axes of matplotlib."""
    steps, validations = ([event for event in events if event.kind == kind] for kind in ("step", "validate"))
    name = "reward" if _online(steps) else "loss"
    numbers, found = _values(steps, name)
    axes.plot(numbers, found, color=FAINT, linewidth=1, label="each step")
    axes.plot(numbers, smoothed(found), color=CURVE, linewidth=1.8, label=f"training {name}, smoothed")
    if validations:
        where, found = _values(validations, name)
        axes.plot(where, found, "o-", color=ACCENT, markersize=4, label=f"validation {name}")
        best, word, beside = (min(found), "lowest", -16) if name == "loss" else (max(found), "highest", 9)
        at = found.index(best)
        axes.annotate(
            f"{word} {best:.3f}",
            (where[at], best),
            textcoords="offset points",
            xytext=(0, beside),
            ha="right" if at > len(found) / 2 else "left",
            color=ACCENT,
        )
        axes.margins(y=0.1)
    axes.set(xlabel="step", ylabel=name)
    axes.legend(frameon=False)
    _plain(axes)


def _online(steps: Sequence[Event]) -> bool:
    """Whether a run learns from its own answers."""
    return "reward" in steps[0].values


def _values(events: list[Event], name: str) -> tuple[list[int], list[float]]:
    """The steps of events and their figure of a name."""
    return [event.step for event in events], [event.values[name] for event in events]


def _line(axes: Any, steps: list[Event], name: str, label: str) -> None:
    axes.plot(*_values(steps, name), color=CURVE, linewidth=1.4)
    axes.set(xlabel="step", ylabel=label)
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.5)
