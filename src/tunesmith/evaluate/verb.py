"""Evaluate: a run, an adapter or a model on rows that it has not learned from, base against tuned in one table.

    target, beside ─▶ columns (base, tuned, others)   ┐
    data           ─▶ material ─▶ tasks               ┴─▶ each task measures each column ─▶ sections ─▶ Results

Data is read and turned into tokens before any weight is loaded, so its faults come first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tunesmith.core.allocator import keep_freed_memory
from tunesmith.core.problem import Problem
from tunesmith.core.run import DataSpec
from tunesmith.data.tokenizer import Codec
from tunesmith.evaluate.choosing import Chooser
from tunesmith.evaluate.language import language_of
from tunesmith.evaluate.material import Material
from tunesmith.evaluate.outcome import Outcome, Sample
from tunesmith.evaluate.results import Results, Section
from tunesmith.evaluate.scoring import Progress, Scorer, silent
from tunesmith.evaluate.settings import Settings
from tunesmith.evaluate.subject import Subject
from tunesmith.evaluate.tasks import Bench, Task
from tunesmith.evaluate.verdict import BASE, MODEL, TUNED, beside, findings, table
from tunesmith.generate.opened import Opened


def evaluate(
    target: str,
    data: Sequence[DataSpec] | None = None,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
    *,
    base: Path = Path(),
    listen: Progress = silent,
) -> Results:
    """Measure a run folder (by default on its validation rows), an adapter folder, or a model by folder or id.

    base: what relative paths of `data` start from; listen: told how far each long part is.

    Raises:
        Problem: the target cannot be used, there is no data to measure on, or the data has faults.
    """
    subject = Subject.of(target, settings)
    codec = subject.codec()
    names = _named_once(target, settings.beside)
    material = subject.material(data, base, codec, listen)
    chooser = Chooser(codec, subject.judging, subject.context, subject.head, subject.rules, listen)
    tasks = chooser.tasks(material)
    measured = [Measured(subject, codec, tasks), *(_beside(name, subject, tasks, material, chooser) for name in names)]
    outcomes: list[dict[str, Outcome]] = [{} for _ in tasks]
    for each in measured:
        each.measure(outcomes, listen)
    for found, task in zip(outcomes, tasks, strict=True):
        found |= task.others(settings.seed, listen)
    return _results(subject, material, codec, list(zip(tasks, outcomes, strict=True)))


@dataclass(frozen=True)
class Measured:
    """A subject with its tasks. column: what it is called where it stands beside another."""

    subject: Subject
    codec: Codec
    tasks: Sequence[Task]
    column: str | None = None

    def measure(self, outcomes: Sequence[dict[str, Outcome]], listen: Progress) -> None:
        """Add what each task finds of each of its models."""
        settings = self.subject.settings

        def measure(column: str, opened: Opened) -> None:
            column = self.column or column
            policy = opened.policy()
            if policy.device.type == "cpu":
                keep_freed_memory()
            scorer = Scorer(policy, settings.tokens_per_batch, _headed(listen, column))
            bench = Bench(column, opened, self.codec, scorer, settings.seed)
            for found, task in zip(outcomes, self.tasks, strict=True):
                found[column] = task.measure(bench)

        self.subject.each(measure)


def _beside(name: str, first: Subject, tasks: Sequence[Task], material: Material, chooser: Chooser) -> Measured:
    """Another subject with the same tasks over the same rows, in its own tokens.

    Raises:
        Problem: it cannot be used, or it cannot read the same rows.
    """
    subject = Subject.of(name, first.settings.model_copy(update={"against": "nothing"}))
    codec = subject.codec()
    own = replace(chooser, codec=codec, context=subject.context, head=subject.head).tasks(material)
    if [(task.name, task.cases) for task in own] != [(task.name, task.cases) for task in tasks]:
        what = f"does not read the same rows as {first.target}: its head, its context or its template differs"
        raise Problem(name, what, "Measure it by itself, or leave out the rows that are too long for one of them")
    return Measured(subject, codec, own, name)


def _named_once(target: str, names: Sequence[str]) -> Sequence[str]:
    taken = [target, BASE, TUNED, MODEL]
    for number, name in enumerate(names):
        if name in (*taken, *names[:number]):
            raise Problem("evaluate.beside", f"{name!r} stands there twice", "Name each model once")
    return names


def _headed(listen: Progress, column: str) -> Progress:
    return lambda what, done, total: listen(f"{column}: {what}", done, total)


def _results(
    subject: Subject, material: Material, codec: Codec, measured: Sequence[tuple[Task, Mapping[str, Outcome]]]
) -> Results:
    settings = subject.settings
    sections: list[Section] = []
    found: list[str] = []
    for task, outcomes in measured:
        rows = table(outcomes, settings.seed)
        found += [*findings(rows, outcomes, settings.seed), *beside(outcomes, settings.beside, settings.seed)]
        best, worst = samples(task, outcomes, settings.samples)
        confusion = {column: outcome.confusion for column, outcome in outcomes.items() if outcome.confusion}
        sections.append(Section(task.name, len(task.cases), rows, task.notes, confusion, best, worst))
    columns = dict.fromkeys(column for _, outcomes in measured for column in outcomes)
    told = (f"{section.name}: {note}" for section in sections for note in section.notes)
    texts = [case.reference for task, _ in measured for case in task.cases]
    return Results(
        subject.target,
        tuple(columns),
        tuple(sections),
        tuple(found),
        language_of(texts),
        settings.model_dump(mode="json"),
        {**material.fingerprints, **subject.fingerprints(codec)},
        (*subject.notes, *material.notes, *told),
    )


def samples(task: Task, outcomes: Mapping[str, Outcome], count: int) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """The best and the worst rows by the scores of the last model; no row is in both."""
    models = {column: outcome for column, outcome in outcomes.items() if column in (BASE, TUNED, MODEL)}
    *_, last = models.values()
    order = np.argsort(-last.scores, kind="stable").tolist()
    count = min(count, len(order) // 2) or min(count, 1)
    best, worst = order[:count], order[::-1][: min(count, len(order) - count)]
    return tuple(_sample(task, models, n) for n in best), tuple(_sample(task, models, n) for n in worst)


def _sample(task: Task, models: Mapping[str, Outcome], number: int) -> Sample:
    answers = {column: outcome.answers[number] for column, outcome in models.items() if outcome.answers}
    scores = {column: float(outcome.scores[number]) for column, outcome in models.items()}
    return Sample(task.cases[number], answers, scores)
