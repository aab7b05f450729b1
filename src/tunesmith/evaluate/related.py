"""Texts beside each other: whether a model finds near what is near, by the cosine of its vectors or by its scores.

    scored pairs   Spearman's and Pearson's correlation of what the model finds with the grades, over all pairs
    near texts     accuracy@1, MRR and NDCG@10 over the texts of each query's own row, where it has far ones too;
                   for vectors also over all texts of all rows (retrieval)

    MRR = mean of 1 / rank of the first near text        NDCG@10 = sum over the ten first of grade / log2(1 + rank),
                                                                   as a share of the largest sum possible

Equal scores count against the model. Correlations are means over rows of the product of two standardised ranks or
values, so that two models can be compared row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.rows import TokenRow
from tunesmith.evaluate.figures import bootstrap, mean, share
from tunesmith.evaluate.outcome import Measure, Outcome
from tunesmith.evaluate.scoring import Floats, Scorer
from tunesmith.evaluate.tasks import Bench, Task
from tunesmith.models.pooling import Pooling

FIRST = 10
"""How many texts NDCG looks at."""


@dataclass
class Related(Task):
    """Rows of a query and others. pooling: how vectors are made; None where the model scores a query with another."""

    rows: tuple[TokenRow, ...]
    pooling: Pooling | None

    def found(self, scorer: Scorer) -> tuple[list[Floats], list[Floats]]:
        """What the model finds of each other text of each row, and the vectors of all texts, where it has any."""
        if self.pooling is None:
            return scorer.scores(self.rows, self.name.lower()), []
        vectors = scorer.embeddings(self.rows, self.pooling, self.name.lower())
        return [part[1:] @ part[0] for part in vectors], vectors

    def grades(self, row: TokenRow) -> Floats:
        """The grade of each other text of a row."""
        return np.array(row.values if self.pooling is None else row.values[1:], dtype=np.float64)


@dataclass
class ScoredPairs(Related):
    """How well pairs are put into the order of their grades."""

    @property
    def name(self) -> str:
        return "Scored pairs"

    def measure(self, bench: Bench) -> Outcome:
        found = np.array([part[0] for part in self.found(bench.scorer)[0]])
        return correlated(found, np.array([self.grades(row)[0] for row in self.rows]), bench.seed)


@dataclass
class NearTexts(Related):
    """How well near texts are found."""

    @property
    def name(self) -> str:
        return "Near texts"

    def measure(self, bench: Bench) -> Outcome:
        found, vectors = self.found(bench.scorer)
        grades = [self.grades(row) for row in self.rows]
        own = [n for n, part in enumerate(grades) if len(set(part)) > 1]
        measures = ranked([found[n] for n in own], [grades[n] for n in own], "of its own texts", bench.seed)
        firsts = [_rank(part, right > 0) for part, right in zip(found, grades, strict=True)]
        if vectors:
            every, right = everywhere(self.rows, vectors)
            measures += ranked(every, right, "of all texts", bench.seed)
            firsts = [_rank(part, near > 0) for part, near in zip(every, right, strict=True)]
        return Outcome(measures, 1 / np.array(firsts, np.float64), tuple(f"rank {first}" for first in firsts))


def correlated(found: Floats, grades: Floats, seed: int = 0) -> Outcome:
    """Correlations of what was found [rows] with the grades [rows]."""
    ranks = (_ranks(found), _ranks(grades))
    measures = (
        _correlation("Spearman's correlation", *ranks, seed),
        _correlation("Pearson's correlation", found, grades, seed),
    )
    shown = tuple(f"{value:.3f}, grade {grade:g}" for value, grade in zip(found, grades, strict=True))
    return Outcome(measures, -np.abs(ranks[0] - ranks[1]), shown)


def ranked(found: Sequence[Floats], grades: Sequence[Floats], of: str, seed: int = 0) -> tuple[Measure, ...]:
    """How high near texts are ranked in each row; no measures where there are no rows."""
    if not found:
        return ()
    first = 1 / np.array([_rank(part, right > 0) for part, right in zip(found, grades, strict=True)], np.float64)
    right = (first == 1).astype(np.float64)
    gained = np.array([ndcg(part, wanted) for part, wanted in zip(found, grades, strict=True)])
    return (
        Measure(f"accuracy@1 {of}", share(int(right.sum()), len(right)), "percent", gains=right),
        Measure(f"MRR {of}", mean(first, seed), gains=first),
        Measure(f"NDCG@{FIRST} {of}", mean(gained, seed), gains=gained),
    )


def ndcg(found: Floats, grades: Floats) -> float:
    """NDCG@10 of texts with what was found [n] and their grades [n]; equal ones stand in the worst order."""
    weights = 1 / np.log2(np.arange(2, 2 + min(FIRST, len(grades))))
    order, best = np.lexsort((grades, -found))[:FIRST], np.sort(grades)[::-1][:FIRST]
    return float((grades[order] * weights).sum() / (best * weights).sum())


def everywhere(rows: Sequence[TokenRow], vectors: Sequence[Floats]) -> tuple[list[Floats], list[Floats]]:
    """For each row the cosines of its query with all other texts of all rows, each once, and their grades.

    What is near to the same query in another row is near here, too; the query itself is not among the texts.
    """
    texts = {said: vector for row, part in zip(rows, vectors, strict=True) for said, vector in _others(row, part)}
    places = {said: place for place, said in enumerate(texts)}
    wanted: dict[bytes, dict[int, float]] = {}
    for row in rows:
        known = wanted.setdefault(_said(row, 0), {})
        for number, grade in enumerate(row.values[1:], start=1):
            place = places[_said(row, number)]
            known[place] = max(grade, known.get(place, 0.0))
    found = np.stack([part[0] for part in vectors]) @ np.stack(list(texts.values())).T
    grades = np.zeros_like(found)
    for number, row in enumerate(rows):
        known = wanted[_said(row, 0)]
        grades[number, list(known)] = list(known.values())
    kept = [[place for said, place in places.items() if said != _said(row, 0)] for row in rows]
    return [part[keep] for part, keep in zip(found, kept, strict=True)], [
        part[keep] for part, keep in zip(grades, kept, strict=True)
    ]


def _others(row: TokenRow, vectors: Floats) -> list[tuple[bytes, Floats]]:
    return [(_said(row, number), vectors[number]) for number in range(1, len(row.branches))]


def _said(row: TokenRow, number: int) -> bytes:
    """A text of a row by its tokens."""
    return row.branches[number].tokens.tobytes()


def _rank(found: Floats, near: NDArray[np.bool_]) -> int:
    """The rank of the first near text, behind all far ones that are found as near."""
    return 1 + int((found[~near] >= found[near].max()).sum())


def _ranks(values: Floats) -> Floats:
    """Ranks from 0 to 1 [rows], equal values with the mean of theirs."""
    _, numbers, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    return middle[numbers] / max(1, len(values) - 1)


def _correlation(name: str, one: Floats, other: Floats, seed: int) -> Measure:
    """Pearson's correlation of two numbers a row; of ranks it is Spearman's."""

    def statistic(rows: NDArray[np.int64]) -> float:
        return float((_standard(one[rows]) * _standard(other[rows])).mean())

    gains = _standard(one) * _standard(other)
    return Measure(name, bootstrap(len(one), statistic, seed), gains=gains)


def _standard(values: Floats) -> Floats:
    """With mean 0 and deviation 1; all 0 where they do not vary."""
    spread = values.std()
    return (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)
