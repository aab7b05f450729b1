"""The table of the review task: each run alone, their votes, and the floor that all have to pass, on the same rows.

    python docs/reviews.py        measure, and write the table into both pages of results

    runs/reviews-rows/held_out.jsonl ─┬─▶ n-grams, a linear model       ─┐
                                      └─▶ runs/NAME, plain transformers ─┴─▶ sure of label 1 ─▶ alone and as votes

The models are loaded and asked by transformers alone, one text at a time, so that nothing of the program that trained
them takes part in judging them. A vote is the mean of probabilities.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from refresh import RESULTS, ROOT, fill
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tunesmith.core.events import read_events
from tunesmith.evaluate.baselines import Linear
from tunesmith.evaluate.figures import share

ROWS = ROOT / "runs" / "reviews-rows"
KEPT = ROOT / "runs" / "reviews-kept"
"""The probabilities of each model, so that a vote more asks none of them again."""
LONGEST = 512
SEEDS = (1, 2, 3)
READ = "reviews-text"
PLAIN, TUNED = "reviews-head", "reviews-classify"
HEADS = {
    "en": ("model", "accuracy", "95 % interval", "right of {}", "minutes of training"),
    "zh": ("模型", "准确率", "95 % 区间", "{} 条中答对", "训练分钟数"),
}
NAMES = {
    "linear": {"en": "linear n-grams, the floor", "zh": "线性 n-gram（下限）"},
    PLAIN: {"en": "head on the embedded base, seed 1", "zh": "内置基座加分类头，种子 1"},
    TUNED: {"en": "read on, then a head, seed {}", "zh": "先续读，再加分类头，种子 {}"},
    "vote": {"en": "vote of the {}", "zh": "{} 个模型投票"},
    "both": {"en": "vote of the {} and the n-grams", "zh": "{} 个模型与 n-gram 一起投票"},
}

Probabilities = NDArray[np.float64]


@dataclass(frozen=True)
class Voice:
    """One line of the table: who judged, how sure it is of label 1 for each row [rows], and minutes of training."""

    name: str
    sure: Probabilities
    minutes: float | None = None
    number: int = 0

    def told(self, tongue: str) -> str:
        return NAMES[self.name][tongue].format(self.number)


def rows(name: str) -> list[tuple[str, str]]:
    """(text, label) of a file that docs/runs/reviews_rows.py made."""
    with (ROWS / f"{name}.jsonl").open(encoding="utf-8") as lines:
        return [(row["text"], str(row["label"])) for row in map(json.loads, lines)]


def floor(training: Sequence[tuple[str, str]], texts: Sequence[str]) -> Probabilities:
    """How sure the linear model is of label 1."""
    return Linear(training, {"0": 0, "1": 1}).probabilities(texts)[:, 1]


def asked(run: str, texts: Sequence[str]) -> Probabilities:
    """How sure the model of a run is of label 1, by transformers alone."""
    folder, kept = ROOT / "runs" / run / "model", KEPT / f"{run}.npy"
    if kept.is_file() and kept.stat().st_mtime > max(file.stat().st_mtime for file in folder.iterdir()):
        return np.load(kept)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    one = int(model.config.label2id["1"])
    with torch.inference_mode():
        logits = [
            model(**tokenizer(text, truncation=True, max_length=LONGEST, return_tensors="pt")).logits[0]
            for text in texts
        ]
    KEPT.mkdir(exist_ok=True)
    np.save(kept, torch.stack(logits).double().softmax(-1)[:, one].numpy(), allow_pickle=False)
    return np.load(kept)


def minutes(run: str) -> float:
    """A run's steps at their median time, so that a pause does not count."""
    events = read_events(ROOT / "runs" / run / "events.jsonl")
    seconds = [event.values["seconds"] for event in events if event.kind == "step"]
    return float(np.median(seconds)) * len(seconds) / 60


def voices(training: Sequence[tuple[str, str]], texts: Sequence[str]) -> Iterator[Voice]:
    """Everyone who judges, alone and together."""
    linear = floor(training, texts)
    yield Voice("linear", linear)
    yield Voice(PLAIN, asked(PLAIN, texts), minutes(PLAIN))
    runs = {seed: TUNED if seed == 1 else f"{TUNED}-{seed}" for seed in SEEDS}
    alone = [Voice(TUNED, asked(run, texts), minutes(run), seed) for seed, run in runs.items()]
    yield from alone
    together = np.mean([voice.sure for voice in alone], axis=0)
    spent = sum(voice.minutes or 0 for voice in alone) + minutes(READ)
    yield Voice("vote", together, spent, len(alone))
    yield Voice("both", (together + linear) / 2, spent, len(alone))


def table(found: Sequence[Voice], truth: NDArray[np.bool_], tongue: str) -> Iterator[str]:
    """The lines of the table."""
    heads = [head.format(f"{len(truth):,}") for head in HEADS[tongue]]
    yield "| " + " | ".join(heads) + " |"
    yield "| --- |" + " ---: |" * (len(heads) - 1)
    for voice in found:
        right = int(((voice.sure > 0.5) == truth).sum())
        figure = share(right, len(truth))
        spent = "–" if voice.minutes is None else f"{voice.minutes:.0f}"
        interval = f"{100 * figure.low:.1f}–{100 * figure.high:.1f}"
        yield f"| {voice.told(tongue)} | {100 * figure.value:.2f} % | {interval} | {right:,} | {spent} |"


def main() -> None:
    """Measure, print, write."""
    held = rows("held_out")
    truth = np.array([label == "1" for _, label in held])
    found = list(voices(rows("train"), [text for text, _ in held]))
    print("\n".join(table(found, truth, "en")))
    fill(RESULTS, "reviews", lambda _, tongue: "\n".join(table(found, truth, tongue)))


if __name__ == "__main__":
    main()
