"""Verdicts: what the figures come to, in sentences; a difference counts only where the rows can show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunesmith.evaluate.baselines import LINEAR, MAJORITY
from tunesmith.evaluate.figures import Figure, gain
from tunesmith.evaluate.outcome import Measure, Outcome
from tunesmith.evaluate.results import Row, cell

BASE = "base"
TUNED = "tuned"
MODEL = "model"
OPEN = "unclear"


def table(outcomes: Mapping[str, Outcome], seed: int = 0) -> tuple[Row, ...]:
    """One line a measure over all columns, in the order in which measures are first met."""
    first: dict[str, Measure] = {}
    for outcome in outcomes.values():
        for measure in outcome.measures:
            first.setdefault(measure.name, measure)
    return tuple(_row(measure, outcomes, seed) for measure in first.values())


def findings(rows: Sequence[Row], outcomes: Mapping[str, Outcome], seed: int = 0) -> list[str]:
    """What a person should know: tuned against base by the first measure, and both against the baselines."""
    found = [_against_base(row) for row in rows[:1] if row.verdict]
    model = next((column for column in (TUNED, MODEL) if column in outcomes), None)
    if model is not None:
        found += [
            sentence for name in (LINEAR, MAJORITY) if (sentence := _against_baseline(outcomes, model, name, seed))
        ]
    return found


def beside(outcomes: Mapping[str, Outcome], names: Sequence[str], seed: int = 0) -> list[str]:
    """How the model stands against others on the same rows, by the first measure."""
    model = next((column for column in (TUNED, MODEL) if column in outcomes), None)
    if model is None:
        return []
    own = outcomes[model].measures[0]
    return [_against_other(own, model, name, outcomes[name].measures[0], seed) for name in names if name in outcomes]


def _against_other(own: Measure, model: str, name: str, other: Measure, seed: int) -> str:
    figures = f"{cell(own.figure, own.shown)} against {cell(other.figure, other.shown)}"
    word = _between(other, own, seed)
    if word in ("better", "worse"):
        return f"The {model} model is {word} than {name} in {own.name}: {figures}."
    return f"{own.figure.n} rows show no clear difference of the {model} model to {name} in {own.name}: {figures}."


def _row(measure: Measure, outcomes: Mapping[str, Outcome], seed: int) -> Row:
    found = {column: _named(outcome, measure.name) for column, outcome in outcomes.items()}
    figures = {column: own.figure for column, own in found.items() if own is not None}
    verdict = _compare(found.get(BASE), found.get(TUNED), seed)
    return Row(measure.name, measure.shown, measure.better, figures, verdict)


def _named(outcome: Outcome, name: str) -> Measure | None:
    return next((measure for measure in outcome.measures if measure.name == name), None)


def _compare(base: Measure | None, tuned: Measure | None, seed: int) -> str:
    if base is None or tuned is None or base.gains is None or tuned.gains is None or not len(base.gains):
        return ""
    return _between(base, tuned, seed)


def _between(one: Measure, other: Measure, seed: int) -> str:
    """How the other stands to the one: row by row, or where a figure has no such parts, by intervals that lie apart."""
    if one.gains is not None and other.gains is not None:
        return _word(gain(one.gains, other.gains, seed))
    above, below = other.figure.low > one.figure.high, other.figure.high < one.figure.low
    if not (above or below):
        return OPEN
    return "better" if above == (other.better == "higher") else "worse"


def _word(difference: Figure) -> str:
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else OPEN


def _against_base(row: Row) -> str:
    base, tuned = (cell(row.figures[column], row.shown) for column in (BASE, TUNED))
    said = {
        "better": f"Tuned is better than base in {row.name}: {tuned} against {base}.",
        "worse": f"Tuned is WORSE than base in {row.name}: {tuned} against {base}.",
    }
    n = row.figures[TUNED].n
    return said.get(row.verdict, f"{n} rows show no clear difference in {row.name}: tuned {tuned}, base {base}.")


def _against_baseline(outcomes: Mapping[str, Outcome], model: str, name: str, seed: int) -> str:
    if name not in outcomes:
        return ""
    own, other = outcomes[model].measures[0], outcomes[name].measures[0]
    if _between(other, own, seed) == "better":
        return ""
    figures = f"{cell(own.figure, own.shown)} against {cell(other.figure, other.shown)}"
    return (
        f"The {model} model does not beat the {name} baseline in {own.name}: {figures}. "
        "More or better rows, more epochs or a larger base may help; otherwise the baseline is the cheaper choice."
    )
