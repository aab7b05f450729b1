"""Choosing tasks: from records to what is measured on them, each choice by the kind of record.

Labels are chosen where rows are labelled texts, or where the answers of chats take at most 20 values, each three times
or more on average.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import numpy as np

from tunesmith.core.problem import Problem
from tunesmith.core.records import Chat, Labelled, Preference, Prompt, Rated, Record, Related, Tagged, Text
from tunesmith.core.rows import TokenRow
from tunesmith.data.encode import Rules
from tunesmith.data.report import Rejected
from tunesmith.data.tokenizer import Codec
from tunesmith.evaluate.answers import Question, question
from tunesmith.evaluate.judged import Numbers, OneLabel, SeveralLabels, Tags
from tunesmith.evaluate.labels import LabelRows, label_row, label_set, prompt_text
from tunesmith.evaluate.material import Material
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.rated import RatedAnswers
from tunesmith.evaluate.related import NearTexts, ScoredPairs
from tunesmith.evaluate.rewarded import Rewarded, asked_of
from tunesmith.evaluate.scoring import Progress
from tunesmith.evaluate.settings import Settings
from tunesmith.evaluate.tasks import Generated, Labels, Pairs, Perplexity, Task, case_of, encoded, left_out
from tunesmith.generate.engines.local import Local
from tunesmith.models.heads import KINDS, HeadSpec
from tunesmith.models.pooling import Pooling
from tunesmith.rewards import Reward
from tunesmith.rewards._sum import keys_checked

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
        self._refuse_idle(bool(kinds[Chat]) and self.head.kind == "lm" and not self.settings.rewards)
        found: list[Task] = []
        if self.head.kind == "lm":
            found += self._texts(kinds[Text])
            found += self._rewarded([*kinds[Prompt], *(kinds[Chat] if self.settings.rewards else ())])
            found += self._chats([] if self.settings.rewards else cast("list[Chat]", kinds[Chat]), material)
        if self.head.kind in ("lm", "score") and not self.head.labels:
            found += self._pairs(kinds[Preference])
            found += self._rated(cast("list[Rated]", kinds[Rated]))
        found += self._judged([*kinds[Labelled], *kinds[Tagged]], material)
        found += self._related(cast("list[Related]", kinds[Related]))
        if not found:
            names = ", ".join(sorted({type(record).__name__ for record in material.records}))
            raise Problem(
                "data",
                f"a model with a {self.head.kind} head is not measured on {names} rows",
                _GIVE[self.head.kind],
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

    def _rewarded(self, records: Sequence[Record]) -> list[Task]:
        """The task of rewards: prompts, and chats without their last answer, which is the key.

        Raises:
            Problem: no rewards are named, or they cannot check an answer key.
        """
        rewards = cast("tuple[Reward, ...]", self.settings.rewards)
        asked = [(record, one) for record in records if (one := asked_of(record)) is not None]
        if not asked:
            return []
        if not rewards:
            what = "are none, and answers to prompts are judged by rewards"
            raise Problem("evaluate.rewards", what, "Name some, such as evaluate.rewards=exact")
        chosen = [(record, one) for record, one in asked if self._prompt_length(one) < self.context]
        lost = Counter({"prompt as long as the context": len(asked) - len(chosen)})
        lost["no answer of plain text at the end"] = len(records) - len(asked)
        notes = tuple(left_out(+lost))
        keys_checked(rewards, [(str(record.place), one.reference) for record, one in chosen])
        questions = _some(tuple(one for _, one in chosen), notes)
        cases = tuple(case_of(record) for record, _ in chosen)
        return [Rewarded(cases, notes, questions, rewards, self.settings.sampling, Local())]

    def _rated(self, records: Sequence[Rated]) -> list[Task]:
        """The task of rated answers.

        Raises:
            Problem: they are all good, or all bad.
        """
        if not records:
            return []
        rows, cases, notes = encoded(records, self.codec, self._rules(Rated), case_of)
        if len({row.values for row in _some(rows, notes)}) == 1:
            kind = "good" if records[0].good else "bad"
            raise Problem(
                "data", f"all {len(rows):,} rated answers are {kind}", "Give some of the other kind beside them"
            )
        return [RatedAnswers(cases, notes, rows, self.head.kind)]

    def _related(self, records: Sequence[Related]) -> list[Task]:
        """Pairs with scores, and rows with near texts, where the model has vectors or one score for them."""
        if not records or self.head.kind not in ("states", "score") or self.head.labels:
            return []
        pooling = self._pooling()
        rules = replace(self._rules(Related), apart=pooling is not None, grades="any")
        pairs = [record for record in records if len(record.others) == 1]
        scored = pairs if len({record.grades for record in pairs}) > 1 else []
        near = [record for record in records if max(record.grades) > 0 and not (scored and len(record.others) == 1)]
        near = [record for record in near if pooling is not None or len(set(record.grades)) > 1]
        found: list[Task] = []
        for kind, chosen in ((ScoredPairs, scored), (NearTexts, near)):
            if chosen:
                rows, cases, notes = encoded(chosen, self.codec, rules, case_of)
                found.append(kind(cases, notes, _some(rows, notes), pooling))
        return found

    def _pooling(self) -> Pooling | None:
        """How vectors are made; None for a model that scores instead.

        Raises:
            Problem: in a way that is not known here.
        """
        if self.head.pooling == "other":
            what = "its files say that it makes vectors in a way that is not known here"
            raise Problem("model", what, "Known: mean, last and cls, without further layers")
        return (self.head.pooling or "mean") if self.head.kind == "states" else None

    def _judged(self, records: Sequence[Record], material: Material) -> list[Task]:
        """What a head for labels, numbers or tags makes of the rows that it is for."""
        kind: type[Record] = Tagged if self.head.kind == "tags" else Labelled
        own = [record for record in records if isinstance(record, kind)]
        if not own or self.head.kind not in KINDS:
            return []
        rules = replace(self._rules(kind), labels=self.head.labels, several=self.head.several)
        rules = replace(rules, number=kind is Labelled and not self.head.labels)
        rows, cases, notes = encoded(own, self.codec, rules, case_of)
        notes = (*([f"{len(rules.labels)} labels: {', '.join(rules.labels[:20])}"] if rules.labels else ()), *notes)
        task = Tags if kind is Tagged else Numbers if rules.number else SeveralLabels if rules.several else OneLabel
        return [task(cases, notes, _some(rows, notes), rules.labels, judged_training(material, kind))]

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


_KINDS: tuple[type[Record], ...] = (Text, Chat, Preference, Prompt, Rated, Labelled, Tagged, Related)


_GIVE = {
    "lm": "Give texts, chats, labelled texts, preferences, rated answers or prompts",
    "score": "Give labelled texts, preferences, rated answers or related texts, as it has learned them",
    "tags": "Give words with tags",
    "states": "Give related texts",
}
"""What a model with each kind of head is measured on, for a hint."""


def judged_training(material: Material, kind: type[Record]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The training rows with labels, as far as they are known: a text and what is right for it."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for record in material.training():
        if isinstance(record, Labelled) and kind is Labelled and record.labels:
            found.append((record.text, record.labels))
        if isinstance(record, Tagged) and kind is Tagged:
            found.append((" ".join(record.words), record.tags))
    return tuple(found)


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
