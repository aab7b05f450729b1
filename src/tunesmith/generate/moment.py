"""Adapters over one base as they are for a while, and plans by which asks are answered with them.

    asks, each with its names ─▶ groups ─▶ batches ─▶ answers
                                  untouched base · LoRA adapters, row by row · one sum of them · one other adapter

A moment is never changed but replaced by the next one. An answer that was planned in a moment that has passed when its
turn comes is not begun: `Replaced` is raised, and it is planned anew.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from tunesmith.core.problem import Problem, nearest
from tunesmith.data.tokenizer import Codec
from tunesmith.generate.batches import Job
from tunesmith.generate.engines import Ask
from tunesmith.generate.engines.local import LocalAnswers
from tunesmith.generate.loras import NO_ADAPTER, Loras
from tunesmith.generate.sampling import Sampling

Names = tuple[str, ...]
"""Adapters that are worn together; none for the untouched base."""
BASE = "base"


def names_of(text: str) -> Names:
    """Adapters by their names with `+` between them; `base` for none."""
    return () if text == BASE else tuple(text.split("+"))


class Replaced(Exception):
    """The shelf was changed after an answer was planned and before it began, so it is planned anew."""


class LoraAnswers(LocalAnswers):
    """Answers of a base with LoRA adapters, where each job wears its own or all wear the same sum."""

    def __init__(self, loras: Loras, *rest: Any) -> None:
        super().__init__(loras.running, *rest)
        self.keys = loras.keys

    def _further(self, batch: Sequence[Job]) -> dict[str, Any]:
        worn = {job.worn for job in batch}
        if len(worn) == 1 and () not in worn:
            self.model.base_model.set_adapter([self.keys[name] for name in worn.pop()], inference_mode=True)
            return {}
        return {"adapter_names": [self.keys[job.worn[0]] if job.worn else NO_ADAPTER for job in batch]}


@dataclass(frozen=True)
class Worn:
    """An adapter on the shelf.

    model: a twin of the base that wears it, None if it is among the LoRA adapters; single: why it is not.
    """

    folder: Path
    codec: Codec
    model: nn.Module | None
    single: str | None


@dataclass(frozen=True)
class Shelved:
    """What is on the shelf. used: what an ask that names nothing is answered with."""

    adapters: Mapping[str, Worn]
    loras: Loras
    used: Names = ()

    def check(self, names: Names) -> None:
        """Raises: Problem: an unknown name, or adapters that cannot be added up."""
        for name in names:
            if name not in self.adapters:
                hint = nearest(name, self.adapters) if self.adapters else "Load it first"
                raise Problem(f"adapter {name}", "is not on the shelf", hint)
        if len(names) < 2:
            return
        if len(set(names)) < len(names):
            raise Problem("+".join(names), "names an adapter twice", "Name each once")
        for name in names:
            if reason := self.adapters[name].single:
                raise not_added(name, reason)
        if len({id(self.adapters[name].codec) for name in names}) > 1:
            what = "were trained with different tokenizers or chat templates, so no prompt is right for both"
            raise Problem("+".join(names), what, "Use one at a time")


class Moment:
    """The shelf as it is for a while, to plan answers by; a plan holds as long as the shelf is not changed."""

    def __init__(self, shelved: Shelved, base: nn.Module, codec: Codec, batch_tokens: int, shared: Shared) -> None:
        def still() -> AbstractContextManager[None]:
            return shared.still(self)

        self.shelved = shelved
        rest = (still, batch_tokens, shared.turn)
        self._bare = LocalAnswers(base, codec, *rest)
        held = shelved.adapters.items()
        self._alone = {name: LocalAnswers(w.model, w.codec, *rest) for name, w in held if w.model is not None}
        codecs = {id(worn.codec): worn.codec for _, worn in held if worn.model is None}
        self._loras = {key: LoraAnswers(shelved.loras, codec, *rest) for key, codec in codecs.items()}

    def batches(
        self, asks: Mapping[int, Ask], sampling: Sampling, chosen: Sequence[Names] | None
    ) -> list[tuple[LocalAnswers, list[Job]]]:
        """Batches of asks that one pass can answer, each with what answers it.

        Raises:
            Problem: as `Shelf.answer`.
        """
        worn = {index: self.shelved.used if chosen is None else chosen[index] for index in asks}
        for names in set(worn.values()):
            self.shelved.check(names)
        beside = {id(self._of(names)) for names in worn.values() if len(names) == 1}
        groups: dict[tuple[int, Names], tuple[LocalAnswers, list[Job]]] = {}
        for index, ask in asks.items():
            answers = self._of(worn[index], beside)
            job = replace(answers.job(index, ask, sampling), worn=worn[index])
            key = (id(answers), job.worn if len(job.worn) > 1 else ())
            groups.setdefault(key, (answers, []))[1].append(job)
        return [(answers, batch) for answers, jobs in groups.values() for batch in answers.packed(jobs, sampling)]

    def job(self, ask: Ask, sampling: Sampling, names: Names | None) -> tuple[LocalAnswers, Job]:
        """One ask, and what answers it.

        Raises:
            Problem: as `Shelf.answer`.
        """
        worn = self.shelved.used if names is None else names
        self.shelved.check(worn)
        answers = self._of(worn)
        return answers, replace(answers.job(0, ask, sampling), worn=worn)

    def _of(self, names: Names, beside: Collection[int] = ()) -> LocalAnswers:
        """What answers an ask that wears these; beside: answers in whose batches a row without adapter may stand."""
        if not names:
            loras = self._loras.get(id(self._bare.codec))
            return loras if loras is not None and id(loras) in beside else self._bare
        return self._alone.get(names[0]) or self._loras[id(self.shelved.adapters[names[0]].codec)]


class Shared:
    """What all moments of a shelf have in common: whose turn it is to generate, and which moment holds."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.moment: Moment | None = None

    @contextmanager
    def still(self, moment: Moment) -> Iterator[None]:
        """Raises: Replaced: the moment has passed."""
        if self.moment is not moment:
            raise Replaced
        yield


def not_added(name: str, reason: str) -> Problem:
    """The fault of an adapter that is to be worn together with others and cannot be."""
    return Problem(f"adapter {name}", f"cannot be added to others: {reason}", "Use it alone")
