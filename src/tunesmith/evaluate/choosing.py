"""Choosing tasks: from records to what is measured on them, each choice by the kind of record.

Labels are chosen where rows are labelled texts, or where the answers of chats take at most 20 values, each three times
or more on average.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np

from tunesmith.core.problem import Problem
from tunesmith.core.records import Chat, Preference, Record, Text
from tunesmith.core.rows import TokenRow
from tunesmith.data.encode import Rules
from tunesmith.data.report import Rejected
from tunesmith.data.tokenizer import Codec
from tunesmith.evaluate.answers import Question, question
from tunesmith.evaluate.labels import LabelRows, label_row, label_set, prompt_text
from tunesmith.evaluate.material import Material
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.scoring import Progress
from tunesmith.evaluate.settings import Settings
from tunesmith.evaluate.tasks import Generated, Labels, Pairs, Perplexity, Task, case_of, encoded, left_out
from tunesmith.generate.engines.local import Local
from tunesmith.models.heads import HeadSpec

T = TypeVar("T")
FEW_VALUES = 20
SEEN_EACH = 3


@dataclass(frozen=True)
class Chooser:
    """What tasks are made with. rules: how records of the run's own kind become tokens; None without a run."""

    codec: Codec
    settings: Settings
    context: int
    head: HeadSpec
    rules: Rules | None
    progress: Progress

    def tasks(self, material: Material) -> list[Task]:
        """The tasks for all records.

        Raises:
            Problem: there is nothing that this model can be measured by on these records.
        """
        kinds = {kind: [record for record in material.records if isinstance(record, kind)] for kind in _KINDS}
        self._refuse_idle(bool(kinds[Chat]) and self.head.kind == "lm")
        found: list[Task] = []
        if self.head.kind == "lm":
            found += self._texts(kinds[Text])
            found += self._chats(cast("list[Chat]", kinds[Chat]), material)
        found += self._pairs(kinds[Preference])
        if not found:
            names = ", ".join(sorted({type(record).__name__ for record in material.records}))
            raise Problem(
                "data",
                f"a model with a {self.head.kind} head is not measured on {names} rows",
                "Give texts, chats, labelled texts or preferences" if self.head.kind == "lm" else "Give preferences",
            )
        return found

    def _refuse_idle(self, chats: bool) -> None:
        """Refuse settings that would do nothing on these records."""
        if chats:
            return
        settings = self.settings
        for name, asked in (("generate", settings.generate > 0), ("labels", self._forced)):
            if asked:
                raise Problem(
                    f"evaluate.{name}",
                    f"is {getattr(settings, name)}, and it is for chats and labelled texts with a language model",
                    "Take it out, or name data with answers",
                )

    @property
    def _forced(self) -> bool:
        """Whether choosing labels was asked for by name."""
        return self.settings.labels in ("probability", "per_token")

    def _texts(self, records: Sequence[Record]) -> list[Task]:
        return [self._perplexity(records, Text, "text")] if records else []

    def _chats(self, chats: Sequence[Chat], material: Material) -> list[Task]:
        found: list[Task] = []
        if not chats:
            return found
        if self.settings.labels != "none":
            found += self._labels(chats, material)
        found.append(self._perplexity(chats, Chat, "answers"))
        if self.settings.generate:
            found.append(self._generated(chats))
        return found

    def _perplexity(self, records: Sequence[Record], kind: type[Record], of: str) -> Task:
        rows, cases, notes = encoded(records, self.codec, self._rules(kind), case_of)
        return Perplexity(cases, notes, _some(rows, notes), of)

    def _pairs(self, records: Sequence[Record]) -> list[Task]:
        if not records:
            return []
        rows, cases, notes = encoded(records, self.codec, self._rules(Preference), case_of)
        return [Pairs(cases, notes, _some(rows, notes), self.head.kind)]

    def _generated(self, chats: Sequence[Chat]) -> Task:
        asked = [(chat, found) for chat in chats if (found := question(chat)) is not None]
        fitting = [(chat, one) for chat, one in asked if self._prompt_length(one) < self.context]
        lost = Counter({"no answer of plain text at the end": len(chats) - len(asked)})
        lost["prompt as long as the context"] = len(asked) - len(fitting)
        chosen = fitting[: self.settings.generate]
        notes = (*left_out(+lost), *_drawn(len(chosen), len(fitting)))
        questions = _some(tuple(one for _, one in chosen), notes)
        metrics = cast("tuple[Metric, ...]", self.settings.metrics)
        for metric in metrics:
            metric.check()
        cases = tuple(case_of(chat) for chat, _ in chosen)
        return Generated(cases, notes, questions, metrics, self.settings.sampling, Local())

    def _labels(self, chats: Sequence[Chat], material: Material) -> list[Task]:
        """The task of labels, or none where the answers are not labels."""
        asked = [chat for chat in chats if question(chat) is not None]
        values = [chat.messages[-1].content for chat in asked]
        sure = material.labelled or self._forced
        if not asked or not (sure or _few(values)):
            return []
        training = [(prompt_text(c.messages[:-1]), c.messages[-1].content) for c in _asked(material.training())]
        known = [label for _, label in training] or values
        if not sure and (len(set(known)) > FEW_VALUES or not set(values) <= set(known)):
            return []
        labels = label_set(known, values)
        if len(labels) < 2:
            return []
        return [self._label_task(asked, labels, training)]

    def _label_task(self, chats: Sequence[Chat], labels: tuple[str, ...], training: list[tuple[str, str]]) -> Task:
        rows: list[TokenRow] = []
        kept: list[Chat] = []
        lost: Counter[str] = Counter()
        for number, chat in enumerate(chats):
            found = label_row(chat, labels, self.codec, self.context)
            if isinstance(found, Rejected):
                lost[found.reason] += 1
            else:
                rows.append(found)
                kept.append(chat)
            self.progress("reading labels", number + 1, len(chats))
        notes = (f"{len(labels)} labels: {', '.join(labels)}", *left_out(lost))
        truth = np.array([labels.index(chat.messages[-1].content) for chat in kept], dtype=np.int64)
        material = LabelRows(_some(tuple(rows), notes), truth, labels)
        texts = tuple(prompt_text(chat.messages[:-1]) for chat in kept)
        by = "per_token" if self.settings.labels == "per_token" else "probability"
        return Labels(tuple(map(case_of, kept)), notes, material, texts, tuple(training), by)

    def _rules(self, kind: type[Record]) -> Rules:
        if self.rules is not None and self.rules.kind is kind:
            return self.rules
        return Rules(kind, self.context, "split" if kind is Text else "drop")

    def _prompt_length(self, one: Question) -> int:
        return len(self.codec.encode_chat(one.ask.messages, one.ask.tools, add_generation_prompt=True))


_KINDS: tuple[type[Record], ...] = (Text, Chat, Preference)


def _asked(records: Sequence[Record]) -> list[Chat]:
    return [record for record in records if isinstance(record, Chat) and question(record) is not None]


def _few(values: Sequence[str]) -> bool:
    distinct = len(set(values))
    return distinct <= FEW_VALUES and SEEN_EACH * distinct <= len(values)


def _drawn(taken: int, there: int) -> list[str]:
    return [f"answers are generated for the first {taken:,} of {there:,} rows"] if taken < there else []


def _some(rows: tuple[T, ...], notes: Sequence[str]) -> tuple[T, ...]:
    if not rows:
        raise Problem("data", f"no row is left to measure ({'; '.join(notes)})", "Give other rows or a longer context")
    return rows
