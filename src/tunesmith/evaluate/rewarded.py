"""Answers to prompts, judged by rewards: what reinforcement learning is for, on rows that were not learned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.core.records import Chat, Prompt, Record
from tunesmith.evaluate.answers import CUT, Question, question
from tunesmith.evaluate.figures import mean, share
from tunesmith.evaluate.outcome import Measure, Outcome
from tunesmith.evaluate.tasks import Bench, Task
from tunesmith.generate.engines import Answer
from tunesmith.generate.engines.local import Local
from tunesmith.generate.sampling import Sampling
from tunesmith.rewards import Asked, Reward
from tunesmith.rewards._sum import Sum

LENGTH = "tokens of an answer"


@dataclass
class Rewarded(Task):
    """What the model's own answers are worth. questions: each prompt, with the key its answer is checked against."""

    questions: tuple[Question, ...]
    rewards: tuple[Reward, ...]
    sampling: Sampling
    engine: Local

    @property
    def name(self) -> str:
        return "Rewards of own answers"

    def measure(self, bench: Bench) -> Outcome:
        answers: list[Answer] = []
        asks = [one.ask for one in self.questions]
        for answer in self.engine.bind(bench.opened.trained, bench.codec).answer(asks, self.sampling):
            answers.append(answer)
            bench.scorer.progress("answers", len(answers), len(asks))
        return self._judged(answers, bench.seed)

    def _judged(self, answers: Sequence[Answer], seed: int) -> Outcome:
        found = Sum(self.rewards)([_asked(*pair) for pair in zip(self.questions, answers, strict=True)])
        columns = {"reward": found.totals}
        if len(found.parts) > 1:
            columns |= {f"reward {name}": part for name, part in found.parts.items()}
        numbers = {name: np.array(values, dtype=np.float64) for name, values in columns.items()}
        measures = [Measure(name, mean(values, seed), gains=values) for name, values in numbers.items()]
        lengths = np.array([len(answer.tokens) for answer in answers], dtype=np.float64)
        cut = sum(answer.ended == "length" for answer in answers)
        measures.append(Measure(LENGTH, mean(lengths, seed)))
        measures.append(Measure(CUT, share(cut, len(answers)), "percent", "lower"))
        return Outcome(tuple(measures), numbers["reward"], tuple(answer.text for answer in answers))


def asked_of(record: Record) -> Question | None:
    """A prompt with its key, or a chat without its last answer, which is the key; None where nothing is asked."""
    if isinstance(record, Prompt):
        return Question(Chat(record.messages, record.tools, place=record.place), record.answer)
    return question(record) if isinstance(record, Chat) else None


def _asked(question: Question, answer: Answer) -> Asked:
    ask = question.ask
    return Asked(ask.messages, answer.text, question.reference, len(answer.tokens), answer.ended, ask.tools)
