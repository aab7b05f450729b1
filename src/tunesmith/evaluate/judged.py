"""Texts that a head labels or rates: what it finds beside what is right.

one label       accuracy, macro-F1 and confusions, beside what simpler means find
several labels  micro-F1 and macro-F1 of single labels, and how often all of a text are right
a number        Pearson's and Spearman's correlation, and the mean absolute error
words           F1 of whole names, where tags mean such, and accuracy of single words

micro-F1 = 2 TP / (2 TP + FP + FN) over all labels of all rows        macro-F1 = the mean of each label's own
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.rows import TokenRow
from tunesmith.evaluate.baselines import MAJORITY, baselines
from tunesmith.evaluate.figures import Figure, bootstrap, mean, share
from tunesmith.evaluate.labels import judge
from tunesmith.evaluate.outcome import Measure, Outcome
from tunesmith.evaluate.related import correlated
from tunesmith.evaluate.scoring import Floats, Progress
from tunesmith.evaluate.spans import counted, has_spans
from tunesmith.evaluate.tasks import Bench, Task

MEAN = "mean of the training rows"


@dataclass
class Judged(Task):
    """Rows that a head judges. training: texts and what is right for each, as far as they are known."""

    rows: tuple[TokenRow, ...]
    labels: tuple[str, ...]
    training: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass
class OneLabel(Judged):
    """Which one label each text has."""

    @property
    def name(self) -> str:
        return "Labels"

    @property
    def truth(self) -> NDArray[np.int64]:
        """The number [rows] of each row's right label."""
        return np.array([row.values[0] for row in self.rows], dtype=np.int64)

    def measure(self, bench: Bench) -> Outcome:
        scores = np.concatenate(bench.scorer.class_scores(self.rows, "labels"))
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        outcome = judge(scores.argmax(axis=1), self.truth, self.labels, bench.seed)
        return replace(outcome, scores=shares[np.arange(len(shares)), self.truth])

    def others(self, seed: int, progress: Progress) -> dict[str, Outcome]:
        known = [(text, right[0]) for text, right in self.training if right[0] in self.labels]
        texts = [case.prompt for case in self.cases]
        return baselines(known, texts, self.truth, self.labels, seed, progress) if known else {}


@dataclass
class SeveralLabels(Judged):
    """Which labels, any number of them, each text has."""

    @property
    def name(self) -> str:
        return "Labels, several a text"

    def measure(self, bench: Bench) -> Outcome:
        scores = np.concatenate(bench.scorer.class_scores(self.rows, "labels"))
        found, right = scores > 0, np.array([row.values for row in self.rows]) > 0.5
        exact = (found == right).all(axis=1).astype(np.float64)
        own = _f1(found & right, found, right, axis=1)
        measures = (
            Measure("micro-F1", _bootstrapped(found, right, None, bench.seed), "percent"),
            Measure("macro-F1", _bootstrapped(found, right, 0, bench.seed), "percent"),
            Measure("all labels right", share(int(exact.sum()), len(exact)), "percent", gains=exact),
        )
        answers = tuple(", ".join(np.array(self.labels, dtype=object)[row]) or "(none)" for row in found)
        return Outcome(measures, own, answers)


@dataclass
class Numbers(Judged):
    """Which number each text has."""

    @property
    def name(self) -> str:
        return "Numbers"

    @property
    def truth(self) -> Floats:
        """The right number [rows]."""
        return np.array([row.values[0] for row in self.rows], dtype=np.float64)

    def measure(self, bench: Bench) -> Outcome:
        return rated(np.concatenate(bench.scorer.scores(self.rows, "numbers")), self.truth, bench.seed)

    def others(self, seed: int, progress: Progress) -> dict[str, Outcome]:
        known = [float(right[0]) for _, right in self.training]
        return {MEAN: rated(np.full(len(self.rows), float(np.mean(known))), self.truth, seed)} if known else {}


@dataclass
class Tags(Judged):
    """Which label each word has."""

    @property
    def name(self) -> str:
        return "Tags"

    def measure(self, bench: Bench) -> Outcome:
        scores = bench.scorer.tag_scores(self.rows, "tags")
        return self._judged([part.argmax(axis=1) for part in scores], bench.seed)

    def others(self, seed: int, progress: Progress) -> dict[str, Outcome]:
        known = [tag for _, tags in self.training for tag in tags if tag in self.labels]
        if not known:
            return {}
        top = self.labels.index(max(self.labels, key=known.count))
        return {MAJORITY: self._judged([np.full(len(row.marks), top) for row in self.rows], seed)}

    def _judged(self, found: Sequence[NDArray[np.int64]], seed: int) -> Outcome:
        right = [np.array(row.values, dtype=np.int64) for row in self.rows]
        hits = np.array([(one == other).sum() for one, other in zip(found, right, strict=True)], np.float64)
        sizes = np.array([len(part) for part in right], np.float64)
        words = bootstrap(len(hits), lambda rows: float(hits[rows].sum() / sizes[rows].sum()), seed)
        accuracy = Measure("word accuracy", words, "percent", gains=hits / sizes)
        said = [[self.labels[number] for number in part] for part in found]
        answers = tuple(" ".join(tags) for tags in said)
        if not has_spans(self.labels):
            return Outcome((accuracy,), hits / sizes, answers)
        names = [[self.labels[number] for number in part] for part in right]
        counts = np.array([counted(one, other) for one, other in zip(said, names, strict=True)])
        return Outcome((*named(counts, seed), accuracy), hits / sizes, answers)


def named(counts: NDArray[np.int64], seed: int = 0) -> tuple[Measure, ...]:
    """F1, precision and recall of names; counts [rows, 3]: found rightly, found, there."""

    def part(top: int, *below: int) -> Figure:
        return bootstrap(len(counts), lambda rows: _share(counts[rows].sum(axis=0), top, below), seed)

    return (
        Measure("F1 of names", part(2, 1, 2), "percent"),
        Measure("precision of names", part(1, 1), "percent"),
        Measure("recall of names", part(1, 2), "percent"),
    )


def rated(found: Floats, right: Floats, seed: int = 0) -> Outcome:
    """Numbers found [rows] against the right ones [rows]."""
    errors = np.abs(found - right)
    spearman, pearson = correlated(found, right, seed).measures
    error = Measure("mean absolute error", mean(errors, seed), better="lower", gains=-errors)
    return Outcome((error, pearson, spearman), -errors, tuple(f"{value:.4g}" for value in found))


def _share(counts: NDArray[np.int64], times: int, below: Sequence[int]) -> float:
    """times * right / the sum of the counts below; 1 where there is nothing to find and nothing was found."""
    whole = int(counts[list(below)].sum())
    return float(times * counts[0] / whole) if whole else float(not counts[1:].any())


def _bootstrapped(found: NDArray[np.bool_], right: NDArray[np.bool_], axis: int | None, seed: int) -> Figure:
    """F1 over all decisions, or along an axis for each label and then their mean."""

    def statistic(rows: NDArray[np.int64]) -> float:
        return float(np.mean(_f1(found[rows] & right[rows], found[rows], right[rows], axis)))

    return bootstrap(len(found), statistic, seed)


def _f1(both: NDArray[np.bool_], found: NDArray[np.bool_], right: NDArray[np.bool_], axis: int | None) -> Floats:
    """2 TP / (2 TP + FP + FN); 1 where there is nothing to find and nothing was found."""
    hits, whole = both.sum(axis=axis), found.sum(axis=axis) + right.sum(axis=axis)
    return np.where(whole > 0, 2 * hits / np.maximum(whole, 1), 1.0).astype(np.float64)
