"""Generated answers against references: asked in batches, greedy unless told otherwise, scored by metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.core.records import Chat
from tunesmith.evaluate.figures import share
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.outcome import Measure, Outcome
from tunesmith.evaluate.scoring import Progress, silent
from tunesmith.generate.engines import Answers
from tunesmith.generate.sampling import Sampling

CUT = "answers cut at max_tokens"


@dataclass(frozen=True, slots=True)
class Question:
    """A chat up to its last answer, and that answer as the reference."""

    ask: Chat
    reference: str


def question(chat: Chat) -> Question | None:
    """The question a chat ends in; None where it does not end in an answer of plain text."""
    *before, last = chat.messages or (None,)
    if last is None or last.role != "assistant" or not last.content or last.tool_calls or not before:
        return None
    return Question(Chat(tuple(before), chat.tools, place=chat.place), last.content)


def generated(
    answers: Answers,
    questions: Sequence[Question],
    metrics: Sequence[Metric],
    sampling: Sampling,
    seed: int = 0,
    progress: Progress = silent,
) -> Outcome:
    """Answer every question and score the answers; the first metric sorts the samples."""
    texts: list[str] = []
    cut = 0
    progress("answers", 0, len(questions))
    for answer in answers.answer([one.ask for one in questions], sampling):
        texts.append(answer.text)
        cut += answer.ended == "length"
        progress("answers", len(texts), len(questions))
    return scored(texts, [one.reference for one in questions], metrics, seed, cut)


def scored(
    texts: Sequence[str], references: Sequence[str], metrics: Sequence[Metric], seed: int = 0, cut: int = 0
) -> Outcome:
    """Metrics over answers that are there; cut: how many of them were cut short."""
    measures: list[Measure] = []
    for metric in metrics:
        gains = np.array(metric.score(texts, references), dtype=np.float64)
        figure = metric.figure(texts, references, seed)
        measures.append(Measure(metric.label(references), figure, metric.shown, gains=gains))
    measures.append(Measure(CUT, share(cut, len(texts)), "percent", "lower"))
    scores = measures[0].gains if measures[0].gains is not None else np.zeros(len(texts))
    return Outcome(tuple(measures), scores, tuple(texts))
