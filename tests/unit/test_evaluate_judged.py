"""What heads for labels, numbers and tags are measured by: against known counts and scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score

from tunesmith.core.rows import Piece, TokenRow
from tunesmith.evaluate.judged import Numbers, SeveralLabels, Tags, named, rated
from tunesmith.evaluate.outcome import Case, Outcome
from tunesmith.evaluate.scoring import silent
from tunesmith.evaluate.spans import counted, has_spans, spans

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER O B-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),
        ("B-PER B-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        ("I-PER I-PER O I-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),
        ("I-PER B-PER I-PER", {("PER", 0, 1), ("PER", 1, 3)}),
        ("B-PER I-LOC I-LOC", {("PER", 0, 1), ("LOC", 1, 3)}),
        ("S-LOC B-PER I-PER E-PER I-PER", {("LOC", 0, 1), ("PER", 1, 4), ("PER", 4, 5)}),
        ("B-ORG-UNIT I-ORG-UNIT", {("ORG-UNIT", 0, 2)}),
        ("O O", set()),
        ("", set()),
    ],
)
def test_spans_that_tags_mean(tags: str, expected: set[Any]) -> None:
    assert spans(tags.split()) == expected


def test_only_tags_of_spans_have_spans() -> None:
    assert has_spans(TAGS)
    assert has_spans(["O", "I-PER"])
    assert not has_spans(["O", "NOUN", "VERB"])
    assert not has_spans(["O", "E-mail", "S-curve"])
    assert not has_spans(["O"])


def test_names_are_counted_whole() -> None:
    right = ["B-PER", "I-PER", "O", "B-LOC", "O"]
    assert counted(right, right) == (2, 2, 2)
    assert counted(["B-PER", "O", "O", "B-LOC", "B-PER"], right) == (1, 3, 2)
    assert counted(["O"] * 5, right) == (0, 0, 2)


def test_spans_are_those_of_seqeval() -> None:
    oracle = pytest.importorskip("seqeval.metrics", reason="seqeval is an oracle, not needed by tunesmith")
    draw = np.random.default_rng(0)
    marks = [*TAGS, "S-PER", "E-LOC"]
    rows = [[[marks[n] for n in draw.integers(0, len(marks), size)] for size in (5, 9, 1, 14)] for _ in range(2)]
    counts = np.array([counted(ours, right) for ours, right in zip(*rows, strict=True)])
    f1, precision, recall = (measure.figure.value for measure in named(counts))
    assert f1 == pytest.approx(oracle.f1_score(rows[1], rows[0]))
    assert precision == pytest.approx(oracle.precision_score(rows[1], rows[0]))
    assert recall == pytest.approx(oracle.recall_score(rows[1], rows[0]))


def test_f1_of_names_has_known_values() -> None:
    f1, precision, recall = (measure.figure.value for measure in named(np.array([[1, 3, 2], [1, 1, 4], [0, 0, 0]])))
    assert (f1, precision, recall) == (pytest.approx(4 / 10), pytest.approx(2 / 4), pytest.approx(2 / 6))


class Scores:
    """What measures rows with numbers that are known."""

    def __init__(self, found: list[np.ndarray]) -> None:
        self.found = found

    def class_scores(self, rows: Any, what: str) -> list[np.ndarray]:
        return self.found

    scores = tag_scores = class_scores


def measured(task: Any, found: list[np.ndarray]) -> dict[str, float]:
    class Bench:
        scorer = Scores(found)
        seed = 0

    outcome: Outcome = task.measure(Bench)
    assert len(outcome.scores) == len(outcome.answers) == len(task.rows)
    return {measure.name: measure.figure.value for measure in outcome.measures}


def row(values: Any, marks: int = 0) -> TokenRow:
    tokens = np.zeros(max(1, marks), np.int32)
    piece = Piece(tokens, tokens.astype(np.float32))
    return TokenRow(piece, values=tuple(map(float, values)), marks=tuple(range(marks)))


def test_several_labels_are_those_of_scikit_learn() -> None:
    draw = np.random.default_rng(1)
    right, scores = draw.integers(0, 2, (12, 3)), draw.normal(size=(12, 3))
    rows = tuple(row(values) for values in right)
    task = SeveralLabels((Case("", "", ""),) * 12, (), rows, ("a", "b", "c"), ())
    found = measured(task, list(scores[:, None]))
    assert found["micro-F1"] == pytest.approx(f1_score(right, scores > 0, average="micro"))
    assert found["macro-F1"] == pytest.approx(f1_score(right, scores > 0, average="macro"))
    assert found["all labels right"] == pytest.approx(((scores > 0) == right).all(axis=1).mean())


def test_numbers_are_those_of_scipy() -> None:
    draw = np.random.default_rng(2)
    right, found = draw.normal(size=20), draw.normal(size=20).round(1)
    values = {measure.name: measure.figure.value for measure in rated(found, right).measures}
    assert values["Pearson's correlation"] == pytest.approx(pearsonr(found, right).statistic)
    assert values["Spearman's correlation"] == pytest.approx(spearmanr(found, right).statistic)
    assert values["mean absolute error"] == pytest.approx(np.abs(found - right).mean())


def test_the_mean_of_the_training_rows_is_beside_numbers() -> None:
    rows = tuple(row([value]) for value in (1, 2, 6))
    task = Numbers((Case("", "", ""),) * 3, (), rows, (), (("a", ("2",)), ("b", ("4",))))
    (other,) = task.others(0, silent).values()
    assert other.measures[0].figure.value == pytest.approx((2 + 1 + 3) / 3)


def test_tags_are_counted_by_names_and_words() -> None:
    rows = (row([1, 2, 0, 3], 4), row([0, 3], 2))
    task = Tags((Case("", "", ""),) * 2, (), rows, TAGS, (("a b", ("O", "O")), ("c", ("B-PER",))))
    found = measured(task, [np.eye(5)[[1, 2, 0, 0]], np.eye(5)[[0, 3]]])
    assert found["F1 of names"] == pytest.approx(2 * 2 / (2 + 3))
    assert found["word accuracy"] == pytest.approx(5 / 6)
    (other,) = task.others(0, silent).values()
    assert other.measures[0].figure.value == 0
    assert other.answers[0] == "O O O O"


def test_tags_without_names_are_words_alone() -> None:
    task = Tags((Case("", "", ""),), (), (row([0, 1], 2),), ("NOUN", "VERB"), ())
    assert measured(task, [np.eye(2)[[0, 0]]]) == {"word accuracy": 0.5}
    assert task.others(0, silent) == {}
