"""Material: the records that are measured, and those that were learned from, as records again.

DataSpec, DataSpec … ─▶ open_source ─▶ records ─▶ at most max_rows, drawn by the seed
run folder           ─▶ prepare (the same split by hash) ─▶ places ─▶ records at these places
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from tunesmith.core.problem import Problem
from tunesmith.core.records import Chat, Labelled, Place, Prompt, Record
from tunesmith.core.run import DataSpec, Run
from tunesmith.data.convert import convert
from tunesmith.data.encode import Rules
from tunesmith.data.formats import RowFault
from tunesmith.data.prepare import prepare
from tunesmith.data.report import Rejected
from tunesmith.data.sources import Source, open_source
from tunesmith.data.split import sample
from tunesmith.data.store import TokenStore
from tunesmith.data.tokenizer import Codec
from tunesmith.evaluate.scoring import Progress

MAX_TRAINING = 50_000
"""Training rows that baselines learn from, at most."""


Measured = Callable[[Record, DataSpec], Record]
"""In which kind a record is measured."""


@dataclass(frozen=True)
class Material:
    """Records to measure; labelled texts are chats already, and `labelled` tells that they were labelled texts.

    training: gives the records that were learned from, if they are known; fingerprints: of the sources; notes: what
    was left out or chosen.
    """

    records: tuple[Record, ...]
    labelled: bool
    training: Callable[[], list[Record]]
    fingerprints: dict[str, str]
    notes: tuple[str, ...] = ()


def from_specs(
    specs: Sequence[DataSpec],
    training: Sequence[DataSpec],
    base: Path,
    home: Path,
    max_rows: int,
    seed: int,
    *,
    measured: Measured | None = None,
) -> Material:
    """Records of data that is named; training: data that the model learned from, for baselines.

    base: what relative paths of `specs` start from; home: those of `training`; measured: in which kind rows are, by
    default `answered`.

    Raises:
        Problem: nothing there, or no row of it can be used.
    """
    sources = [source for spec in specs for source in open_source(spec, base)]
    reader = Reader(sources, measured)
    records = reader.sample(max_rows, seed)
    if not records:
        raise Problem(
            ", ".join(spec.path for spec in specs), "no row of it can be measured", "Run tunesmith data check"
        )

    def learned() -> list[Record]:
        known = [source for spec in training for source in open_source(spec, home)]
        return list(islice(Reader(known, measured).records(), MAX_TRAINING))

    prints = {source.spec.path: source.fingerprint() for source in sources}
    return Material(tuple(records), reader.labelled, learned, prints, tuple(reader.notes()))


def from_run(
    run: Run, rules: Rules, codec: Codec, base: Path, progress: Progress, *, measured: Measured | None = None
) -> Material:
    """The validation rows of a run, by the same split as in training; measured: as in `from_specs`.

    Raises:
        Problem: the run's data cannot be read any more, or nothing was set aside.
    """
    prepared = prepare(run, rules, codec, base, lambda done: progress("reading rows", done, 0))
    if not len(prepared.validation):
        raise Problem(
            "validation",
            "this run has set no rows aside, so there is nothing to measure on",
            "Name data to measure on (--data FILE)",
        )
    learned = [source for spec in run.data for source in open_source(spec, base)]
    apart = [source for spec in run.validation.data for source in open_source(spec, base)]
    reader = Reader(apart or learned, measured)
    records = tuple(reader.at(_places(prepared.validation)))
    reader.kept = reader.seen  # rows that are not at these places were learned from, not left out

    def training() -> list[Record]:
        rows = prepared.train
        return Reader(learned, measured).at(_places(rows.view(sample(rows.keys, MAX_TRAINING))))

    prints = {name: prepared.fingerprints[name] for name in ("data", "validation")}
    return Material(records, reader.labelled, training, prints, tuple(reader.notes()))


def _places(rows: TokenStore) -> set[Place]:
    return {rows.place(number) for number in range(len(rows))}


class Reader:
    """Reads records from sources, in the kind that is measured, and keeps account of what it leaves out."""

    def __init__(self, sources: Sequence[Source], measured: Measured | None = None) -> None:
        self.sources = sources
        self.measured = measured or answered
        self.rejected: Counter[str] = Counter()
        self.seen = 0
        self.kept = 0

    @property
    def labelled(self) -> bool:
        """Whether every source holds texts with labels."""
        return all(source.format.yields is Labelled for source in self.sources)

    def records(self) -> Iterator[Record]:
        """Every usable record, in order.

        Raises:
            Problem: a row cannot be used and its source says `on_bad_row: stop`.
        """
        for source in self.sources:
            for found in source.records():
                made = found if isinstance(found, Rejected) else self._made(found, source.spec)
                if isinstance(made, Rejected):
                    self._reject(made, source.spec)
                else:
                    self.seen += 1
                    yield made

    def sample(self, max_rows: int, seed: int) -> list[Record]:
        """At most so many records, drawn evenly from all (Vitter's reservoir), in their order."""
        draw = np.random.default_rng(seed)
        kept: list[tuple[int, Record]] = []
        for number, record in enumerate(self.records()):
            if number < max_rows:
                kept.append((number, record))
            elif (at := int(draw.integers(0, number + 1))) < max_rows:
                kept[at] = (number, record)
        self.kept = len(kept)
        return [record for _, record in sorted(kept, key=lambda pair: pair[0])]

    def at(self, places: set[Place]) -> list[Record]:
        """The records that stand at these places."""
        return [record for record in self.records() if record.place in places]

    def notes(self) -> Iterator[str]:
        """What was left out, for a person."""
        if self.rejected:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.rejected.most_common())
            yield f"{self.rejected.total():,} rows cannot be used: {reasons}"
        if self.kept < self.seen:
            yield f"{self.kept:,} of {self.seen:,} rows were drawn to be measured"

    def _made(self, record: Record, spec: DataSpec) -> Record | Rejected:
        try:
            return self.measured(record, spec)
        except RowFault as fault:
            return Rejected(record.place, fault.reason, str(fault), "")

    def _reject(self, row: Rejected, spec: DataSpec) -> None:
        if spec.on_bad_row == "stop":
            raise Problem(str(row.place), f"{row.reason}: {row.message}", "Mend the row, or set on_bad_row: quarantine")
        self.rejected[row.reason] += 1


def answered(record: Record, spec: DataSpec) -> Record:
    """As a model that writes is measured: a text with its label and a prompt with its key become chats."""
    key = record.label if isinstance(record, Labelled) else record.answer if isinstance(record, Prompt) else ""
    return convert(record, Chat if key else type(record), spec)


def prompted(record: Record, spec: DataSpec) -> Record:
    """As a model is measured by rewards: what has an answer becomes a prompt, with that answer as its key."""
    return convert(record, Prompt if isinstance(record, Chat | Labelled) else type(record), spec)


def labelled(record: Record, spec: DataSpec) -> Record:
    """As a model that chooses labels is measured: what has an answer becomes a text, with that answer as its label."""
    return convert(record, Labelled if isinstance(record, Chat | Prompt) else type(record), spec)


def as_it_is(record: Record, spec: DataSpec) -> Record:
    """As a row stands."""
    return record
