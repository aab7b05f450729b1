"""Intervals on cases whose answer is known, and verdicts that follow from them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tunesmith.evaluate.figures import Figure, bootstrap, gain, mean, share
from tunesmith.evaluate.labels import judge
from tunesmith.evaluate.language import language_of
from tunesmith.evaluate.outcome import Measure, Outcome
from tunesmith.evaluate.results import cell
from tunesmith.evaluate.verdict import findings, table


def test_wilson_on_published_cases() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        figure = share(hits, n)
        assert (round(figure.low, 4), round(figure.high, 4)) == (low, high)


def test_a_bootstrap_is_near_the_interval_of_the_mean() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    figure = mean(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert figure.value == pytest.approx(values.mean())
    assert figure.low == pytest.approx(values.mean() - half, abs=0.04)
    assert figure.high == pytest.approx(values.mean() + half, abs=0.04)
    assert mean(values) == figure
    assert mean(values, seed=1) != figure


def test_equal_rows_leave_no_doubt() -> None:
    assert mean([2.0] * 10) == Figure(2.0, 2.0, 2.0, 10)
    assert mean([math.inf] * 3) == Figure(math.inf, math.inf, math.inf, 3)
    assert math.isnan(bootstrap(0, lambda rows: 0.0).value)


def test_the_interval_covers_what_it_says() -> None:
    draw = np.random.default_rng(0)
    held = 0
    for seed in range(100):
        figure = mean(draw.exponential(1.0, 60), seed)
        held += figure.low <= 1.0 <= figure.high
    assert 88 <= held <= 99


def test_a_paired_difference_is_seen_where_intervals_overlap() -> None:
    draw = np.random.default_rng(0)
    base = draw.normal(0, 10, 200)
    tuned = base + 0.5 + draw.normal(0, 1, 200)
    assert mean(base).high > mean(tuned).low
    assert gain(base, tuned).low > 0


def outcome(values: np.ndarray, name: str = "accuracy") -> Outcome:
    return Outcome((Measure(name, share(int(values.sum()), len(values)), "percent", gains=values),), values)


def test_verdicts_say_what_the_rows_show() -> None:
    rows = np.arange(200)
    weak, strong = (rows % 2 == 0).astype(float), (rows % 10 > 0).astype(float)
    better = {"base": outcome(weak), "tuned": outcome(strong), "linear n-grams": outcome(weak)}
    worse = {"base": outcome(strong), "tuned": outcome(weak), "linear n-grams": outcome(strong)}
    same = {"base": outcome(weak), "tuned": outcome(weak)}
    assert [table(one)[0].verdict for one in (better, worse, same)] == ["better", "worse", "unclear"]
    assert findings(table(better), better) == [
        "Tuned is better than base in accuracy: 90.0 % (85.1–93.4) against 50.0 % (43.1–56.9)."
    ]
    said = findings(table(worse), worse)
    assert "WORSE" in said[0]
    assert "does not beat the linear n-grams baseline" in said[1]
    assert findings(table(same), same)[0].startswith("200 rows show no clear difference")


def test_macro_f1_and_confusion_are_scikit_learns() -> None:
    from sklearn.metrics import confusion_matrix, f1_score

    draw = np.random.default_rng(0)
    truth, chosen = draw.integers(0, 3, 80), draw.integers(0, 3, 80)
    found = judge(chosen, truth, ("a", "b", "c", "d"))
    accuracy, f1 = found.measures
    assert accuracy.figure.value == pytest.approx((truth == chosen).mean())
    assert f1.figure.value == pytest.approx(f1_score(truth, chosen, average="macro"))
    assert f1.figure.low < f1.figure.value < f1.figure.high
    assert found.confusion is not None
    assert np.array(found.confusion.counts)[:3, :3].tolist() == confusion_matrix(truth, chosen).tolist()


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("今天天气很好", "zh"),
        ("今日は良い天気です", "ja"),
        ("오늘 날씨가 좋다", "ko"),
        ("a fine day", "spaced"),
        ("วันนี้อากาศดี", "th"),
        ("", "spaced"),
        ("A long English sentence that has only one 字 in it, and nothing more", "spaced"),
    ],
)
def test_languages_by_script(text: str, language: str) -> None:
    assert language_of([text]) == language


def test_cells_are_short() -> None:
    assert cell(Figure(0.81234, 0.775, 0.8444, 99), "percent") == "81.2 % (77.5–84.4)"
    assert cell(Figure(12345.6, 1.23456, math.inf, 9), "number") == "12,346 (1.235–inf)"
    assert cell(None, "number") == "–"
