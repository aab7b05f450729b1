"""The one table of a study: a row a method, its seeds put together, its best learning rate, and a verdict in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

from tunesmith.compare.outcome import Outcome, Quality, Refusal
from tunesmith.compare.study import Study, bare

HEAD = ("method", "quality", "learns", "lr", "steps", "tokens/s", "peak memory", "saved")


@dataclass(frozen=True)
class Entry:
    """A method on a base, with the learning rate that did best: its trials, one a seed."""

    base: str
    method: str
    lr: float
    trials: tuple[Outcome, ...]

    @property
    def values(self) -> list[float]:
        return [outcome.quality.value for outcome in self.trials]

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for a single one."""
        return stdev(self.values) if len(self.trials) > 1 else None

    @property
    def share(self) -> float:
        """What learns, as a share of all weights."""
        return self.trials[0].trainable / self.trials[0].all

    @property
    def memory(self) -> int:
        return max(outcome.memory for outcome in self.trials)

    @property
    def speed(self) -> float:
        return median(outcome.speed for outcome in self.trials)

    def quality(self) -> str:
        """Mean and spread as a person reads them."""
        measure = self.trials[0].quality
        spread = "" if self.spread is None else f" ± {shown(measure, self.spread)}"
        return shown(measure, self.mean) + spread

    def cells(self) -> tuple[str, ...]:
        """The row of the table under HEAD."""
        one = self.trials[0]
        return (
            self.method,
            self.quality(),
            f"{self.share:.3%}",
            f"{self.lr:g}",
            f"{one.steps:,}",
            f"{self.speed:,.0f}",
            f"{self.memory / 1e9:.2f} GB",
            f"{one.size / 1e6:.2f} MB",
        )


@dataclass(frozen=True)
class Table:
    """All of a study: entries by base, best first; what was refused; what the base itself reaches."""

    study: Study
    entries: tuple[Entry, ...]
    refused: tuple[Refusal, ...]
    before: dict[str, float]
    measure: Quality | None

    @classmethod
    def of(cls, study: Study, found: Iterable[Outcome | Refusal]) -> Table:
        """The table of what trials came to; seeds and learning rates of a method are put together."""
        listed = list(found)
        done = [outcome for outcome in listed if isinstance(outcome, Outcome)]
        before = {outcome.trial.base: outcome.before for outcome in done if outcome.before is not None}
        refused = tuple(outcome for outcome in listed if isinstance(outcome, Refusal))
        entries = [entry for base in study.bases for entry in _ranked(base, study.methods, done)]
        return cls(study, tuple(entries), refused, before, done[0].quality if done else None)

    def rows(self, base: str) -> list[tuple[str, ...]]:
        """The rows under HEAD for a base, the untouched base last."""
        out = [entry.cells() for entry in self.of_base(base)]
        if base in self.before and self.measure is not None:
            out.append(("(base, untouched)", shown(self.measure, self.before[base]), *("–",) * (len(HEAD) - 2)))
        return out

    def of_base(self, base: str) -> list[Entry]:
        """The entries of a base, best first."""
        return [entry for entry in self.entries if entry.base == base]

    def verdict(self) -> Iterator[str]:
        """What the table comes to, in sentences."""
        for base in self.study.bases:
            if entries := self.of_base(base):
                yield from _verdict(base, entries, self.before.get(base))
        for refusal in self.refused:
            yield f"Not carried out: {refusal.reason}"

    def plain(self) -> dict[str, object]:
        """The table as plain data."""
        return {
            "study": self.study.plain(),
            "measure": self.measure.name if self.measure else None,
            "before": self.before,
            "rows": [_plain(entry) for entry in self.entries],
            "refused": [{"trial": refusal.trial.name, "reason": refusal.reason} for refusal in self.refused],
            "verdict": list(self.verdict()),
        }

    def markdown(self) -> str:
        """The table and the verdict as a page."""
        title = self.measure.name if self.measure else "nothing finished"
        lines = [f"# Methods compared: {title}", "", f"Budget: {self.study.budget.words()}."]
        for base in self.study.bases:
            lines += ["", f"## {base}", "", _line(HEAD), _line(("---",) * len(HEAD)), *map(_line, self.rows(base))]
        return "\n".join([*lines, "", *(f"* {sentence}" for sentence in self.verdict()), ""])


def shown(measure: Quality, value: float) -> str:
    """A value as its measure is shown."""
    return f"{100 * value:.1f} %" if measure.shown == "percent" else f"{value:.4g}"


def _ranked(base: str, methods: Sequence[str], done: Sequence[Outcome]) -> list[Entry]:
    entries = [entry for method in dict.fromkeys(map(bare, methods)) if (entry := _entry(base, method, done))]
    return sorted(entries, key=_goodness, reverse=True)


def _entry(base: str, method: str, done: Sequence[Outcome]) -> Entry | None:
    """A method with the learning rate whose seeds did best together; None where none of its trials is done."""
    by_rate: dict[float, list[Outcome]] = {}
    for outcome in done:
        if (outcome.trial.base, outcome.trial.method) == (base, method):
            by_rate.setdefault(outcome.trial.lr, []).append(outcome)
    entries = [Entry(base, method, lr, tuple(outcomes)) for lr, outcomes in by_rate.items()]
    return max(entries, key=_goodness) if entries else None


def _goodness(entry: Entry) -> float:
    return entry.mean if entry.trials[0].quality.better == "higher" else -entry.mean


def _verdict(base: str, entries: Sequence[Entry], before: float | None) -> Iterator[str]:
    best, measure = entries[0], entries[0].trials[0].quality
    against = "" if before is None else f", from {shown(measure, before)} of the untouched base"
    yield f"On {base}, {best.method} has the best {measure.name}: {best.quality()}{against}."
    if best.spread is None:
        yield "One seed tells nothing of chance; --seeds 3 would."
        return
    close = [entry for entry in entries[1:] if _overlap(entry, best)]
    if not close:
        yield "Its seeds lie apart from those of every other method."
        return
    yield f"Seeds do not tell it apart from {', '.join(entry.method for entry in close)}."
    least = min([best, *close], key=lambda entry: entry.share)
    yield f"The least weights of these learn with {least.method} ({least.share:.3%})."


def _overlap(left: Entry, right: Entry) -> bool:
    """Whether the ranges of two methods' seeds meet."""
    return min(left.values) <= max(right.values) and min(right.values) <= max(left.values)


def _plain(entry: Entry) -> dict[str, object]:
    one = entry.trials[0]
    return {
        "base": entry.base,
        "method": entry.method,
        "lr": entry.lr,
        "values": {outcome.trial.seed: outcome.quality.value for outcome in entry.trials},
        "mean": entry.mean,
        "spread": entry.spread,
        "trainable": one.trainable,
        "all": one.all,
        "steps": one.steps,
        "tokens": [outcome.tokens for outcome in entry.trials],
        "seconds": [outcome.seconds for outcome in entry.trials],
        "tokens_per_second": entry.speed,
        "peak_memory_bytes": entry.memory,
        "saved_bytes": one.size,
    }


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
