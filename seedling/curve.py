"""The curve of pre-training, drawn from the record of the run: held-out loss over tokens, with its stages.

record/seedling-2/events.jsonl ─▶ docs/images/seedling.png

python -m seedling.curve
"""

from __future__ import annotations

import math

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from seedling import RECORD, ROOT
from seedling.card import BASE_RUNS, STAGES
from tunesmith.core.events import read_events

PICTURE = ROOT.parent / "docs" / "images" / "seedling.png"
SMOOTH = 0.98
"""Of the training loss: how much of each point comes from those before."""
Line = tuple[list[float], list[float]]


def lines() -> tuple[Line, Line, dict[int, float]]:
    """Training loss, smoothed, and held-out loss, each over millions of tokens; and the tokens after each step."""
    tokens: dict[int, float] = {0: 0.0}
    train: Line = ([], [])
    aside: Line = ([], [])
    mean = math.nan
    for event in read_events(RECORD / BASE_RUNS[0] / "events.jsonl"):
        if event.kind == "step":
            tokens[event.step] = event.values["total_tokens"] / 1e6
            loss = event.values["loss"]
            mean = loss if math.isnan(mean) else SMOOTH * mean + (1 - SMOOTH) * loss
            train[0].append(tokens[event.step])
            train[1].append(mean)
        elif event.kind == "validate":
            aside[0].append(tokens[event.step])
            aside[1].append(event.values["loss"])
    return train, aside, tokens


def main() -> None:
    train, aside, tokens = lines()
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    axis.plot(*train, color="#9ecae1", label="training, smoothed")
    axis.plot(*aside, color="#d62728", marker="o", markersize=3, label="held out")
    for number, (start, _) in enumerate(STAGES[1:], 2):
        axis.axvline(tokens[start], color="grey", linestyle=":", linewidth=1)
        axis.annotate(f" stage {number}", (tokens[start], 6.3), fontsize=8, color="grey")
    axis.set(xlabel="million tokens", ylabel="loss, nats a token", ylim=(3, 6.5), xlim=(0, None))
    axis.legend()
    axis.grid(alpha=0.3)
    figure.savefig(PICTURE, dpi=110)
    print(PICTURE)


if __name__ == "__main__":
    main()
