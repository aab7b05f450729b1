"""Tasks: what is measured for which kind of record.

    Text        perplexity
    Chat        perplexity of the answers; labels, where the answers are few; generated answers, where asked for
    Preference  how often the better answer is put first
    Prompt      what the model's own answers are worth (`rewarded.py`)
    Rated       how well good answers are told from bad ones (`rated.py`)
    Labelled    by a head for labels or a number: accuracy, F1, correlations (`judged.py`)
    Tagged      by a head for tags: F1 of names, accuracy of words
    Related     how well texts beside each other are ordered (`related.py`)

A task holds its rows as tokens, made once, and measures one model after the other on them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tunesmith.core.records import Chat, Labelled, Preference, Prompt, Rated, Record, Related, Tagged, Text
from tunesmith.core.rows import TokenRow
from tunesmith.data.encode import Rules, encode
from tunesmith.data.report import Rejected
from tunesmith.data.tokenizer import Codec
from tunesmith.evaluate import pairs
from tunesmith.evaluate.answers import Question, generated
from tunesmith.evaluate.baselines import baselines
from tunesmith.evaluate.labels import By, LabelRows, choose, prompt_text
from tunesmith.evaluate.measure import perplexity
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.outcome import Case, Outcome
from tunesmith.evaluate.scoring import Floats, Progress, Scorer
from tunesmith.generate.engines.local import Local
from tunesmith.generate.opened import Opened
from tunesmith.generate.sampling import Sampling


@dataclass(frozen=True)
class Bench:
    """A model on the bench: its column, and what measures it."""

    column: str
    opened: Opened
    codec: Codec
    scorer: Scorer
    seed: int


@dataclass
class Task(ABC):
    """One way of measuring over rows. cases: the rows as people see them; notes: what was left out."""

    cases: tuple[Case, ...]
    notes: tuple[str, ...]

    @property
    @abstractmethod
    def name(self) -> str:
        """What is measured, as a heading."""

    @abstractmethod
    def measure(self, bench: Bench) -> Outcome:
        """Measure one model."""

    def others(self, seed: int, progress: Progress) -> dict[str, Outcome]:
        """What else stands in the table, such as baselines, by column."""
        return {}


@dataclass
class Perplexity(Task):
    """How likely the right tokens are."""

    rows: tuple[TokenRow, ...]
    of: str

    @property
    def name(self) -> str:
        return f"Perplexity of {self.of}"

    def measure(self, bench: Bench) -> Outcome:
        return perplexity(bench.scorer, bench.codec, self.rows, bench.seed)


@dataclass
class Labels(Task):
    """Which label is likeliest, beside what simpler means find. training: (text, label) pairs, none if unknown."""

    rows: LabelRows
    texts: tuple[str, ...]
    training: tuple[tuple[str, str], ...]
    by: By = "probability"

    @property
    def name(self) -> str:
        return "Labels"

    def measure(self, bench: Bench) -> Outcome:
        return choose(bench.scorer, self.rows, self.by, bench.seed)

    def others(self, seed: int, progress: Progress) -> dict[str, Outcome]:
        if not self.training:
            return {}
        return baselines(self.training, self.texts, self.rows.truth, self.rows.labels, seed, progress)


@dataclass
class Generated(Task):
    """What the model answers by itself."""

    questions: tuple[Question, ...]
    metrics: tuple[Metric, ...]
    sampling: Sampling
    engine: Local

    @property
    def name(self) -> str:
        return "Generated answers"

    def measure(self, bench: Bench) -> Outcome:
        answers = self.engine.bind(bench.opened.trained, bench.codec)
        return generated(answers, self.questions, self.metrics, self.sampling, bench.seed, bench.scorer.progress)


@dataclass
class Pairs(Task):
    """Which of two answers is put first; the first model measured is the one that rewards are reckoned from."""

    rows: tuple[TokenRow, ...]
    head: str
    base: list[Floats] | None = field(default=None)

    @property
    def name(self) -> str:
        return "Preference pairs"

    def measure(self, bench: Bench) -> Outcome:
        if self.head == "score":
            return pairs.by_score(bench.scorer, self.rows)
        own = pairs.pair_logprobs(bench.scorer, self.rows)
        outcome = pairs.by_likelihood(own, self.base)
        self.base = own
        return outcome


def encoded(
    records: Sequence[Record], codec: Codec, rules: Rules, case: Callable[[Record], Case]
) -> tuple[tuple[TokenRow, ...], tuple[Case, ...], tuple[str, ...]]:
    """Token rows with the case of each, and what was left out."""
    rows: list[TokenRow] = []
    cases: list[Case] = []
    lost: Counter[str] = Counter()
    for record in records:
        found = encode(record, codec, rules)
        if isinstance(found, Rejected):
            lost[found.reason] += 1
            continue
        rows += found
        cases += [case(record)] * len(found)
    return tuple(rows), tuple(cases), tuple(left_out(lost))


def left_out(lost: Counter[str]) -> list[str]:
    """Rows that are not measured, by reason, as sentences."""
    return [f"{count:,} rows are not measured: {reason}" for reason, count in lost.most_common()]


def case_of(record: Record) -> Case:
    """A record as a person sees it."""
    place = str(record.place)
    if isinstance(record, Text):
        return Case(place, "", record.text)
    if isinstance(record, Preference):
        better, worse = prompt_text(record.chosen), prompt_text(record.rejected)
        return Case(place, prompt_text(record.prompt), f"better: {better}\n\nworse: {worse}")
    if isinstance(record, Chat) and record.messages:
        return Case(place, prompt_text(record.messages[:-1]), record.messages[-1].content)
    if isinstance(record, Prompt):
        return Case(place, prompt_text(record.messages), record.answer)
    if isinstance(record, Rated):
        said = "good" if record.good else "bad"
        return Case(place, prompt_text(record.prompt), f"{said}: {prompt_text(record.answer)}")
    if isinstance(record, Related):
        texts = [f"{grade:g}: {text}" for grade, text in zip(record.grades, record.others, strict=True)]
        return Case(place, record.query, "\n\n".join(texts))
    if isinstance(record, Labelled):
        return Case(place, record.text, record.label)
    if isinstance(record, Tagged):
        return Case(place, " ".join(record.words), " ".join(record.tags))
    return Case(place, "", "")
