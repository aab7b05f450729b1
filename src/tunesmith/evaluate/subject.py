"""The subject of an evaluation: a run, an adapter or a model, and what follows from which of them it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tunesmith.core.problem import Problem
from tunesmith.core.run import DataSpec, ModelSpec, Run, read_run
from tunesmith.data.encode import Rules
from tunesmith.data.golden import check_golden
from tunesmith.data.tokenizer import Codec
from tunesmith.evaluate.material import (
    Material,
    Measured,
    answered,
    as_it_is,
    from_run,
    from_specs,
    labelled,
    prompted,
)
from tunesmith.evaluate.scoring import Progress
from tunesmith.evaluate.settings import Settings
from tunesmith.evaluate.verdict import BASE, MODEL, TUNED
from tunesmith.generate.held import hold
from tunesmith.generate.opened import Opened, open_model
from tunesmith.generate.sampling import Sampling
from tunesmith.models.ancestor import saved_length
from tunesmith.models.heads import HeadSpec
from tunesmith.models.load import context_of, fingerprint, load_codec, told_of
from tunesmith.models.quantize import settle
from tunesmith.models.source import Found, find, head_of, read_json
from tunesmith.objectives import Objective
from tunesmith.objectives._online import Online

NO_LIMIT = 1 << 20
"""Tokens of a row where the architecture sets no limit."""


@dataclass(frozen=True)
class Subject:
    """What is measured: where it was found, and the run it came from if there is one."""

    target: str
    found: Found
    run: Run | None
    settings: Settings

    @classmethod
    def of(cls, target: str, settings: Settings) -> Subject:
        """Raises: Problem: nothing by that name, or a run that has no model yet."""
        found = find(target)
        return cls(target, found, read_run(found.run.run_file) if found.run else None, settings)

    @property
    def record(self) -> dict[str, Any]:
        """The record of the run; empty without one."""
        folder = self.found.run
        return read_json(folder.record) if folder is not None and folder.record.is_file() else {}

    @property
    def objective(self) -> Objective | None:
        return cast(Objective, self.run.objective) if self.run else None

    @property
    def judging(self) -> Settings:
        """The settings, with the rewards and the longest answers of the run where they do not name their own."""
        objective = self.objective
        if not isinstance(objective, Online):
            return self.settings
        own: dict[str, Any] = {} if self.settings.rewards else {"rewards": objective.rewards}
        if "sampling" not in self.settings.model_fields_set:
            drawn = objective.sampling
            own["sampling"] = Sampling(max_tokens=drawn.max_tokens, stop=drawn.stop)
        return self.settings.model_copy(update=own)

    @property
    def head(self) -> HeadSpec:
        return head_of(self.found)

    @property
    def context(self) -> int:
        """The longest row, in tokens; a soft prompt takes its places before it."""
        return (context_of(self.found) or NO_LIMIT) - saved_length(self.found.adapter)

    @property
    def rules(self) -> Rules | None:
        """How the run makes tokens of its records."""
        if self.run is None or self.objective is None:
            return None
        return self.objective.rules(self.run.train)

    def codec(self) -> Codec:
        """The tokenizer and template that the result was saved with.

        Raises:
            Problem: they give other tokens than in training.
        """
        codec = load_codec(self.found)
        check_golden(codec, self.record, self.target)
        return codec

    def material(self, data: Sequence[DataSpec] | None, base: Path, codec: Codec, listen: Progress) -> Material:
        """What to measure on: the data named, or the run's validation rows."""
        if data:
            specs = [self._like_run(spec) for spec in data]
            training = self.settings.training or (self.run.data if self.run else ())
            home = base if self.settings.training else self._home(base)
            seen, seed = self.settings.max_rows, self.settings.seed
            return from_specs(specs, training, base, home, seen, seed, measured=self._measured)
        if self.run is None or self.rules is None:
            raise Problem(
                self.target, "is no run, so it has no validation rows", "Name data to measure on: --data FILE"
            )
        return from_run(self.run, self.rules, codec, self._home(base), listen, measured=self._measured)

    @property
    def _measured(self) -> Measured:
        """In which kind its rows are measured."""
        if self.head.kind == "lm":
            return prompted if isinstance(self.objective, Online) else answered
        return labelled if self.head.kind == "score" and self.head.labels else as_it_is

    def each(self, measure: Callable[[str, Opened], None]) -> None:
        """Give each model to `measure`, with its column; base first, and only one base in memory at a time."""
        spec = self._spec(self.target)
        if self.found.adapter is not None:
            opened = self._opened(spec)
            if self._beside_base:
                with opened.off():
                    measure(BASE, opened)
            measure(TUNED, opened)
            return
        if self.run is not None and self._beside_base:
            measure(BASE, self._opened(self._spec(self.run.model.path, self.run.model.revision)))
        measure(TUNED if self.run else MODEL, self._opened(spec))

    def _opened(self, spec: ModelSpec) -> Opened:
        opened = open_model(spec, self.head)
        hold(opened.trained, self.settings.weights)
        return opened

    @property
    def _beside_base(self) -> bool:
        """Whether the base is measured too; the head of a base that was never trained to score is random."""
        return self.head.kind in ("lm", "states") and self.settings.against == "base"

    @property
    def notes(self) -> tuple[str, ...]:
        """How its base is held, where that is in few bits."""
        held = settle(self._spec(self.target), self.found).held
        return () if held is None else (told_of(self.found, self.head, held),)

    def fingerprints(self, codec: Codec) -> dict[str, str]:
        """Hashes of the base's weights and of what makes tokens."""
        return {"weights": fingerprint(self.found), "tokenizer": codec.fingerprint()}

    def _spec(self, path: str, revision: str | None = None) -> ModelSpec:
        like = self.run.model if self.run else ModelSpec(path=path)
        names = ("device", "dtype", "quantize")
        wanted = {name: value for name in names if (value := getattr(self.settings, name)) is not None}
        return like.model_copy(update={"path": path, "revision": revision, "chat_template": None, **wanted})

    def _home(self, base: Path) -> Path:
        """What the run's own paths start from."""
        return Path(self.record.get("base", base))

    def _like_run(self, spec: DataSpec) -> DataSpec:
        """Labelled texts are asked about as in training, unless the spec says how."""
        asked = {(own.prompt, own.system) for own in self.run.data} if self.run else set()
        if spec.prompt is not None or spec.system is not None or len(asked) != 1:
            return spec
        prompt, system = asked.pop()
        return spec.model_copy(update={"prompt": prompt, "system": system})
