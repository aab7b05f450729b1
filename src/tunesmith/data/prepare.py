"""Prepare: from a run to the rows it learns from and the rows it is measured on.

data ──────▶ store ──▶ split by content ──▶ train, validation
validation ▶ store ──▶ shared rows leave the training side
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunesmith.core.problem import Problem, raise_all
from tunesmith.core.run import DataSpec, Run
from tunesmith.data.build import Part, Progress, build_store, cache_folder
from tunesmith.data.encode import Rules, check
from tunesmith.data.report import DataReport
from tunesmith.data.sources import open_source
from tunesmith.data.split import sample, split, without_shared
from tunesmith.data.store import TokenStore
from tunesmith.data.tokenizer import Codec

MAX_TOKENS = 1024
"""The longest row where neither the run nor the model says."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The two sides of a run's data, the report on them, hashes of what they were made from, lines for a person."""

    train: TokenStore
    validation: TokenStore
    report: DataReport
    fingerprints: dict[str, str]
    lines: tuple[str, ...]


def prepare(
    run: Run, rules: Rules, codec: Codec, base: Path = Path(), progress: Progress = lambda done: None
) -> Prepared:
    """Read, tokenise and split a run's data; rules: how; base: the folder that its paths start from.

    Raises:
        Problem: the data cannot be used, or no row is left to learn from.
    """
    check(codec, rules)
    parts, apart = _open(run.data, base), _open(run.validation.data, base)
    store, report = build_store(parts, codec, rules, cache_folder(), progress)
    if apart:
        held_out, other = build_store(apart, codec, rules, cache_folder(), progress)
        sides = _apart(store, held_out, run.validation.max_rows)
        report.sources.extend(other.sources)
    else:
        sides = _split(store, run)
    lines = [*_template_lines(codec), *report.lines(), *sides.lines]
    if not len(sides.train):
        raise Problem("data", "no rows are left to learn from", "Give more rows, or lower validation.fraction")
    prints = {
        "data": _content(sides.train),
        "validation": _content(sides.validation),
        "template": _hash(codec.template),
    }
    return Prepared(sides.train, sides.validation, report, prints, tuple(lines))


@dataclass(frozen=True, slots=True)
class _Sides:
    train: TokenStore
    validation: TokenStore
    lines: tuple[str, ...]


def _open(specs: Sequence[DataSpec], base: Path) -> list[Part]:
    """The sources of all specs; faults of several are reported together."""
    parts: list[Part] = []
    faults: list[Problem] = []
    for entry, spec in enumerate(specs):
        try:
            parts += [Part(source, entry) for source in open_source(spec, base)]
        except Problem as fault:
            faults.append(fault)
    raise_all("data", faults)
    return parts


def _split(store: TokenStore, run: Run) -> _Sides:
    spec = run.validation
    learned, measured = split(store.keys, spec.fraction, spec.max_rows)
    line = f"{len(learned):,} rows to learn from, {len(measured):,} set aside for validation, chosen by their content"
    return _Sides(store.view(learned), store.view(measured), (line,))


def _apart(store: TokenStore, held_out: TokenStore, max_rows: int) -> _Sides:
    learned = without_shared(store.keys, held_out.keys)
    measured = sample(held_out.keys, max_rows)
    lines = [f"{len(learned):,} rows to learn from, {len(measured):,} of {len(held_out):,} validation rows measured"]
    shared = len(store) - len(learned)
    if shared:
        lines.append(f"{shared:,} rows stand in the validation data too, and are not learned from")
    return _Sides(store.view(learned), held_out.view(measured), tuple(lines))


def _template_lines(codec: Codec) -> list[str]:
    return [codec.parts.template_was_set] if codec.parts.template_was_set else []


def _content(store: TokenStore) -> str:
    return hashlib.sha256(np.ascontiguousarray(store.keys).tobytes()).hexdigest()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
