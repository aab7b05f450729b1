"""Rated answers: how well a model tells good ones from bad ones by one number each.

    score head           the score
    language model       log p(answer) per token
    with an adapter too  log p/p_base of the answer, the reward that KTO learns

AUC is the chance that a good answer gets more than a bad one; equal numbers count half. Two models are compared by each
row's part in it, so that the variance of the mean of parts is DeLong's:

    part(good) = AUC + n/n_good * (share of bad ones below - AUC),   part(bad) the same the other way round

Accuracy at 0 takes answers above 0 for good. (DeLong et al. 1988)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.rows import TokenRow
from tunesmith.evaluate.figures import bootstrap, share
from tunesmith.evaluate.outcome import Measure, Outcome
from tunesmith.evaluate.scoring import Floats, Scorer, unweighted
from tunesmith.evaluate.tasks import Bench, Task

Marks = NDArray[np.bool_]

SCORE = "score"
LIKELIHOOD = "likelihood per token"
REWARD = "reward against the base"


@dataclass
class RatedAnswers(Task):
    """Good answers from bad ones; the first model measured is the one that rewards are reckoned from."""

    rows: tuple[TokenRow, ...]
    head: str
    base: Floats | None = field(default=None)

    @property
    def name(self) -> str:
        return "Rated answers"

    def measure(self, bench: Bench) -> Outcome:
        good = np.array([row.values[0] > 0 for row in self.rows])
        if self.head == "score":
            return told_apart({SCORE: _firsts(bench.scorer.scores(self.rows, "rated answers"))}, good, bench.seed)
        own = answer_logprobs(bench.scorer, self.rows)
        lengths = np.array([np.count_nonzero(row.branches[0].weights) for row in self.rows])
        found = {LIKELIHOOD: own / lengths}
        if self.base is not None:
            found[REWARD] = own - self.base
        self.base = own
        return told_apart(found, good, bench.seed)


def answer_logprobs(scorer: Scorer, rows: Sequence[TokenRow]) -> Floats:
    """[rows] the log-probability of each row's answer."""
    return _firsts(scorer.logprobs([unweighted(row) for row in rows], "rated answers"))


def told_apart(values: dict[str, Floats], good: Marks, seed: int = 0) -> Outcome:
    """How well each of some values [rows] tells good rows from bad ones; a score and a reward have a zero, too."""
    measures: list[Measure] = []
    for name, found in values.items():
        figure = bootstrap(len(found), lambda rows, found=found: auc(found[rows], good[rows]), seed)
        measures.append(Measure(f"AUC by {name}", figure, gains=parts(found, good)))
        if name != LIKELIHOOD:
            right = ((found > 0) == good).astype(np.float64)
            measures.append(
                Measure(f"accuracy at {name} 0", share(int(right.sum()), len(right)), "percent", gains=right)
            )
    last = list(values.values())[-1]
    return Outcome(tuple(measures), np.where(good, last, -last))


def auc(values: Floats, good: Marks) -> float:
    """The chance that a good row's value is above a bad one's; not a number where a kind is missing."""
    return float(_below(values[good], values[~good]).mean()) if good.any() and not good.all() else float("nan")


def parts(values: Floats, good: Marks) -> Floats:
    """[rows] each row's part in the AUC, which is their mean."""
    out, whole = np.empty(len(values)), auc(values, good)
    out[good] = _below(values[good], values[~good])
    out[~good] = 1 - _below(values[~good], values[good])
    return whole + np.where(good, len(good) / good.sum(), len(good) / (~good).sum()) * (out - whole)


def _below(values: Floats, others: Floats) -> Floats:
    """[values] the share of the others that is below each value, equal ones counted half."""
    others = np.sort(others)
    return (np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")) / (2 * len(others))


def _firsts(found: Sequence[Floats]) -> Floats:
    return np.array([part[0] for part in found])
