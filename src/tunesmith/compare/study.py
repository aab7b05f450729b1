"""A study: one run, tried with every method, base model, learning rate and seed, each under the same budget.

    run file ─┬─ methods ─┬─ bases ─┬─ lrs ─┬─ seeds ─▶ Trial, Trial …   each an ordinary run folder

A study is plain data and stands in its folder, so that the same command goes on with it and another one is refused.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from tunesmith.core.plugins import build
from tunesmith.core.problem import Problem, raise_all
from tunesmith.core.run import Run, parse_run
from tunesmith.core.rundir import RunDir, write_json
from tunesmith.methods import Method

FILE = "study.json"


@dataclass(frozen=True)
class Budget:
    """What each trial may take: tokens, or minutes of training; neither for what the run file says."""

    tokens: int | None = None
    minutes: float | None = None

    def words(self) -> str:
        if self.tokens is not None:
            return f"{self.tokens:,} tokens each"
        return f"{self.minutes:g} minutes each" if self.minutes is not None else "as long as the run file says"


@dataclass(frozen=True)
class Trial:
    """One run of a study. method: as it was named; run: plain data of the run."""

    base: str
    method: str
    lr: float
    seed: int
    folder: RunDir
    run: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The trial in words."""
        return f"{self.method}, lr {self.lr:g}, seed {self.seed}"

    def parsed(self, steps: int | None = None) -> Run:
        """The trial's run, with so many steps if they are known.

        Raises:
            Problem: the method's options have faults.
        """
        if steps is None:
            return parse_run(dict(self.run), self.name)
        return parse_run({**self.run, "train": {**self.run["train"], "steps": steps}}, self.name)


@dataclass(frozen=True)
class Study:
    """What is compared. home: the folder that relative paths of data start from; rates: learning rates to try."""

    folder: Path
    run: Mapping[str, Any]
    home: str
    methods: tuple[str, ...]
    bases: tuple[str, ...]
    rates: tuple[float, ...] | None
    seeds: tuple[int, ...]
    budget: Budget

    @classmethod
    def of(
        cls,
        folder: Path,
        run: Run,
        home: Path,
        methods: tuple[str, ...],
        *,
        bases: tuple[str, ...] = (),
        rates: tuple[float, ...] | None = None,
        seeds: int = 1,
        budget: Budget = Budget(),
    ) -> Study:
        """A study of a run.

        rates: learning rates that every method tries, whose best one counts; None for each method's usual one.

        Raises:
            Problem: every method that is not known or has faulty options, all together.
        """
        if not methods:
            raise Problem("--methods", "names none", "Name some, such as --methods lora,vera,full")
        plain = run.plain()
        _check(methods)
        bases = bases or (str(plain["model"]["path"]),)
        numbers = tuple(range(plain["train"]["seed"], plain["train"]["seed"] + seeds))
        return cls(folder.resolve(), plain, str(home.resolve()), methods, bases, rates, numbers, budget)

    def trials(self) -> Iterator[Trial]:
        """All trials: base by base, method by method, so that what is done first can be compared first."""
        for base, method in itertools.product(self.bases, self.methods):
            for lr, seed in itertools.product(self._rates(method), self.seeds):
                yield self._trial(base, method, lr, seed)

    def begin(self) -> None:
        """Write the study down, or go on with the one that stands in the folder.

        Raises:
            Problem: another study stands there.
        """
        file = self.folder / FILE
        if not file.is_file():
            write_json(file, self.plain())
            return
        found = json.loads(file.read_text(encoding="utf-8"))
        other = sorted(name for name, value in self.plain().items() if found.get(name) != value)
        if other:
            raise Problem(
                str(self.folder),
                f"holds another study, which has other {', '.join(other)}",
                "Choose another --output, or give the command that this study was started with",
            )

    def plain(self) -> dict[str, Any]:
        """The study as plain data, without its own place."""
        return json.loads(json.dumps({name: value for name, value in asdict(self).items() if name != "folder"}))

    def _rates(self, method: str) -> tuple[float, ...]:
        """Learning rates of a method: the one it was named with, or those of the study, or its usual one."""
        own = named_rate(method)
        return (own,) if own is not None else self.rates or (usual_lr(method),)

    def _trial(self, base: str, method: str, lr: float, seed: int) -> Trial:
        run = json.loads(json.dumps(self.run))
        run["method"] = spoken(method)
        run["model"]["path"] = base
        (optimizer,) = run["optimizer"].values()
        optimizer["lr"] = lr
        run["train"]["seed"] = seed
        words = [base] * (len(self.bases) > 1) + [bare(method), f"lr {lr:g}", f"seed {seed}"]
        folder = self.folder / "trials" / slug(" ".join(words))
        run["output"] = str(folder)
        return Trial(base, bare(method), lr, seed, RunDir(folder), run)


def bare(method: str) -> str:
    """A method as it was named, without the learning rate behind an `@`."""
    return method.partition("@")[0].strip()


def named_rate(method: str) -> float | None:
    """The learning rate that a method was named with, as in `lora@1e-3`.

    Raises:
        Problem: what stands behind the `@` is no number.
    """
    _, marked, rate = method.partition("@")
    try:
        return float(rate) if marked else None
    except ValueError as error:
        raise Problem(f"--methods {method}", f"{rate!r} is no learning rate", "Write it as lora@1e-3") from error


def spoken(method: str) -> Any:
    """A method as a run file has it, from a name or from YAML such as `lora: {rank: 4}`.

    Raises:
        Problem: it is no YAML.
    """
    try:
        return yaml.safe_load(bare(method))
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise Problem(
            f"--methods {method}", f"cannot be read ({reason})", "Write NAME or NAME: {option: value}"
        ) from error


def usual_lr(method: str) -> float:
    """The learning rate that a method usually learns well with."""
    return cast(Method, build("method", spoken(method))).usual_lr


def slug(text: str) -> str:
    """A name for a folder that a person can read."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.").lower()


def _check(methods: tuple[str, ...]) -> None:
    found: list[Problem] = []
    for method in methods:
        try:
            named_rate(method)
            build("method", spoken(method))
        except Problem as problem:
            found.append(Problem(f"--methods {method}", problem.what, problem.hint))
    raise_all("--methods", found)
