"""Several adapters over one base in memory: each ask is answered with the ones it names, and they change at any time.

    base ──┬── untouched                       asks without an adapter
           ├── LoRA adapters side by side      in one batch, each row with its own; or added up
           └── a twin for each other adapter   DoRA, soft prompts, own adapters …: one batch after the other

All of them stand over the same weights (`models/twin.py`). What is on the shelf is one value, which is never changed
but replaced: an answer that has begun ends with the adapter it began with, one that waits gets the new one, and an
adapter that cannot be loaded leaves everything as it was.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from peft import PeftModel
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.core.problem import Problem
from tunesmith.core.run import ModelSpec
from tunesmith.generate.batches import Job
from tunesmith.generate.engines import Answer, Answers, Ask
from tunesmith.generate.engines.local import LocalAnswers
from tunesmith.generate.loras import FROM_THE_BASE, Loras, sum_refused
from tunesmith.generate.moment import BASE, Moment, Names, Replaced, Shared, Shelved, Worn, names_of, not_added
from tunesmith.generate.opened import ADAPTER_FILE, DOES, put_on
from tunesmith.generate.sampling import Sampling
from tunesmith.methods._own import CONFIG, saved_method
from tunesmith.models.load import Loaded, fingerprint, load, load_codec, skeleton
from tunesmith.models.source import Found, find, head_of, read_json
from tunesmith.models.twin import twin


class Shelf(Answers):
    """A base at work with adapters to choose from; one call generates at a time, and loading never waits for it."""

    def __init__(self, loaded: Loaded, batch_tokens: int = 16384, chat_template: str | None = None) -> None:
        """Raises: Problem: the model is itself a base with an adapter."""
        _check_plain(loaded.found)
        loaded.model.requires_grad_(False)
        self.loaded = loaded
        self.batch_tokens = batch_tokens
        self.chat_template = chat_template
        self._base = twin(loaded.model)  # answers; the first one never runs, so that it can be copied at any time
        self._shared = Shared()
        self._writing = threading.Lock()
        self._numbers = itertools.count()
        self._show(Shelved({}, Loras(loaded.model)))

    @classmethod
    def open(cls, spec: ModelSpec) -> Shelf:
        """A base with an empty shelf.

        Raises:
            Problem: as `models.load.load`, or the model is itself an adapter.
        """
        _check_plain(find(spec.path, spec.revision))
        return cls(load(spec), chat_template=spec.chat_template)

    @property
    def adapters(self) -> Mapping[str, Worn]:
        """What is on the shelf, by name."""
        return self._moment.shelved.adapters

    @property
    def used(self) -> Names:
        """What an ask that names no adapter is answered with."""
        return self._moment.shelved.used

    @property
    def _moment(self) -> Moment:
        return cast(Moment, self._shared.moment)

    def load(self, name: str, folder: str | Path) -> None:
        """Put an adapter or a run on the shelf under a name, in place of what has the name already.

        Raises:
            Problem: it cannot be read, belongs to another base or does not fit; what was there stays.
        """
        if not name or name == BASE or any(letter in "+=" or letter.isspace() for letter in name):
            raise Problem(f"adapter {name!r}", "is no name for an adapter", f"No +, = or spaces, and not {BASE!r}")
        worn = self._worn(find(str(folder)))
        with self._writing:
            now = self._moment.shelved
            if len(now.used) > 1 and name in now.used and worn.single:
                raise not_added(name, worn.single)
            loras = now.loras.without(name)
            if worn.single is None:
                loras = loras.joined(name, cast(PeftModel, worn.model), next(self._numbers))
                worn = replace(worn, model=None)
            self._show(Shelved({**now.adapters, name: worn}, loras, now.used))

    def drop(self, name: str) -> None:
        """Take an adapter off the shelf.

        Raises:
            Problem: there is none of this name, or it is in use.
        """
        with self._writing:
            now = self._moment.shelved
            now.check((name,))
            if name in now.used:
                raise Problem(f"adapter {name}", "is in use", "Use another one or the base first")
            left = {other: worn for other, worn in now.adapters.items() if other != name}
            self._show(Shelved(left, now.loras.without(name), now.used))

    def use(self, *names: str) -> None:
        """What asks are answered with that name no adapter: one, the sum of several, or the untouched base.

        Raises:
            Problem: an unknown name, or adapters that cannot be added up.
        """
        with self._writing:
            now = self._moment.shelved
            now.check(names)
            self._show(replace(now, used=names))

    def wearing(self, *names: str) -> Answers:
        """Answers that always name these adapters, whatever is in use.

        Raises:
            Problem: as `use`.
        """
        self._moment.shelved.check(names)
        return _Wearing(self, names)

    def answer(
        self, asks: Sequence[Ask], sampling: Sampling, adapters: Sequence[str | None] | None = None
    ) -> Iterator[Answer]:
        """One answer to each ask, in their order.

        adapters: what each ask is answered with, such as `legal` or `legal+terse`, None for the untouched base; by
        default all with what is in use.

        Raises:
            Problem: as `Answers.answer`, or as `use`.
        """
        chosen = None if adapters is None else [() if text is None else names_of(text) for text in adapters]
        if chosen is not None and len(chosen) != len(asks):
            raise ValueError(f"{len(asks)} asks and {len(chosen)} choices of adapters")
        return self.answer_with(asks, sampling, chosen)

    def answer_with(self, asks: Sequence[Ask], sampling: Sampling, chosen: Sequence[Names] | None) -> Iterator[Answer]:
        """As `answer`, with names apart."""
        waiting = dict(enumerate(asks))
        return self._answers(self._moment.batches(waiting, sampling, chosen), waiting, sampling, chosen)

    def stream(self, ask: Ask, sampling: Sampling, names: Names | None = None) -> Generator[str, None, None]:
        """The text of one answer, piece by piece; names: what it is answered with, by default what is in use."""
        return self._pieces(self._moment.job(ask, sampling, names), ask, sampling, names)

    def _answers(
        self,
        batches: list[tuple[LocalAnswers, list[Job]]],
        waiting: dict[int, Ask],
        sampling: Sampling,
        chosen: Sequence[Names] | None,
    ) -> Iterator[Answer]:
        ready: dict[int, Answer] = {}
        following = 0
        while batches:
            answers, batch = batches.pop(0)
            try:
                drawn = dict(answers.drawn(batch, sampling))
            except Replaced:
                batches = self._moment.batches(waiting, sampling, chosen)
                continue
            except BaseException:
                self._renew()
                raise
            ready |= drawn
            for index in drawn:
                del waiting[index]
            while following in ready:
                yield ready.pop(following)
                following += 1

    def _pieces(
        self, planned: tuple[LocalAnswers, Job], ask: Ask, sampling: Sampling, names: Names | None
    ) -> Generator[str, None, None]:
        while True:
            answers, job = planned
            try:
                return (yield from answers.pieces(job, sampling))
            except Replaced:  # told before the first token
                planned = self._moment.job(ask, sampling, names)

    def _worn(self, found: Found) -> Worn:
        """An adapter on a twin of the base, after everything about it was checked."""
        folder = self._checked(found)
        codec = load_codec(found, self.chat_template)
        rows = cast(Tensor, self.loaded.model.get_input_embeddings().weight).shape[0]
        if codec.vocab_size > rows:
            what = f"has a tokenizer of {codec.vocab_size} entries, and the base's embedding has {rows} rows"
            raise Problem(str(folder), what, "Fold it (tunesmith fold) and use the folded model")
        for other in (self.loaded.codec, *(worn.codec for worn in self.adapters.values())):
            if codec.fingerprint() == other.fingerprint():
                codec = other
                break
        model = put_on(twin(self.loaded.model, _learned_of_base(found, self.loaded.model)), folder)
        return Worn(folder, codec, model.eval().requires_grad_(False), sum_refused(model))

    def _checked(self, found: Found) -> Path:
        """The folder of an adapter that can be put on this base beside others.

        Raises:
            Problem: it cannot, or is no adapter.
        """
        folder, base = found.adapter, self.loaded.found
        if folder is None:
            raise Problem(found.name, "is a whole model, not an adapter", "Name the folder of an adapter or of its run")
        if found.base != base.base and fingerprint(Found("", found.base)) != fingerprint(base):
            raise Problem(str(folder), f"is an adapter of {found.name}, not of {base.name}", "Open its own base")
        if (kind := head_of(found).kind) != "lm":
            raise Problem(str(folder), DOES[kind], "Measure it: tunesmith evaluate")
        start = str(read_json(folder / CONFIG).get("init_lora_weights")).lower()
        if start.startswith(FROM_THE_BASE):
            what = f"was saved with its start {start}, which PEFT takes out of the base's weights on loading"
            raise Problem(str(folder), what, "Fold it (tunesmith fold), or save it as plain LoRA")
        return folder

    def _renew(self) -> None:
        """Another model for the LoRA adapters: PEFT leaves its hooks on one whose batch was broken off."""
        with self._writing:
            now = self._moment.shelved
            self._show(replace(now, loras=now.loras.renewed()))

    def _show(self, shelved: Shelved) -> None:
        self._shared.moment = Moment(shelved, self._base, self.loaded.codec, self.batch_tokens, self._shared)


class _Wearing(Answers):
    """Answers of a shelf with some of its adapters."""

    def __init__(self, shelf: Shelf, names: Names) -> None:
        self.shelf = shelf
        self.names = names

    def answer(self, asks: Sequence[Ask], sampling: Sampling) -> Iterator[Answer]:
        return self.shelf.answer_with(asks, sampling, [self.names] * len(asks))

    def stream(self, ask: Ask, sampling: Sampling) -> Generator[str, None, None]:
        return self.shelf.stream(ask, sampling, self.names)


def _check_plain(found: Found) -> None:
    if found.adapter is not None:
        what = "is an adapter, and others are put beside it on its base"
        raise Problem(str(found.adapter), what, f"Name its base ({found.name}), and it as one of the adapters")


def _learned_of_base(found: Found, model: PreTrainedModel) -> set[str]:
    """Names of the base's own weights into which an adapter puts other values."""
    folder = cast(Path, found.adapter)
    own = saved_method(folder)
    if own is not None:
        outline = skeleton(found)
        weights = dict(outline.named_parameters())
        own.outline().apply(outline)
        return {name for name, weight in weights.items() if weight.requires_grad}
    with safe_open(folder / ADAPTER_FILE, framework="np") as file:
        keys = list(file.keys())
    saved = {key.removeprefix("base_model.model.").replace(".base_layer.", ".") for key in keys}
    return {name for name, _ in model.named_parameters() if name in saved and name.endswith(".bias")}
