"""Rounds on disk: what a step was to learn from when it was stopped, so that the resumed run learns from the same.

    Round ─▶ tensors by "batch.name", and an outline: which batches make which group, segments, rows, notes

A batch that several groups share, as in several epochs over one rollout, is kept once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tunesmith.models.forest import Batch, Segment, Targets
from tunesmith.objectives import Round

TARGETS = ("source", "token", "row", "weight")
PLAIN = ("tokens", "positions", "values", "marks", "mark_rows")
EXTRA = "extra."


def outline(found: Round) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A round as tensors by name and plain data."""
    numbers: dict[int, int] = {}
    batches: list[Batch] = []
    for batch in (batch for group in found.groups for batch in group):
        if id(batch) not in numbers:
            numbers[id(batch)] = len(batches)
            batches.append(batch)
    tensors = {f"{at}.{name}": value for at, batch in enumerate(batches) for name, value in _tensors(batch).items()}
    plain = {
        "groups": [[numbers[id(batch)] for batch in group] for group in found.groups],
        "batches": [_plain(batch) for batch in batches],
        "figures": dict(found.figures),
    }
    return tensors, plain


def restored(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Round:
    """The round that `outline` gave; its notes were told already.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    parts: dict[int, dict[str, Tensor]] = {number: {} for number in range(len(plain["batches"]))}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        parts[int(number)][name] = value
    batches = [_batch(parts[number], about) for number, about in enumerate(plain["batches"])]
    return Round([[batches[number] for number in group] for group in plain["groups"]], plain["figures"])


def _tensors(batch: Batch) -> dict[str, Tensor]:
    own = {name: getattr(batch, name) for name in PLAIN}
    own |= {f"target.{name}": getattr(batch.targets, name) for name in TARGETS}
    own |= {f"{EXTRA}{name}": value for name, value in batch.extras.items()}
    return {name: value.detach().cpu().clone().contiguous() for name, value in own.items()}


def _plain(batch: Batch) -> dict[str, Any]:
    return {
        "segments": [list(segment) for segment in batch.segments],
        "leaves": list(batch.leaves),
        "rows": list(batch.rows),
        "sizes": list(batch.sizes),
        "notes": list(batch.notes),
    }


def _batch(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Batch:
    return Batch(
        **{name: tensors[name] for name in PLAIN},
        targets=Targets(*(tensors[f"target.{name}"] for name in TARGETS)),
        segments=tuple(Segment(*segment) for segment in about["segments"]),
        leaves=tuple(about["leaves"]),
        rows=tuple(about["rows"]),
        sizes=tuple(about["sizes"]),
        notes=tuple(about["notes"]),
        extras={name[len(EXTRA) :]: value for name, value in tensors.items() if name.startswith(EXTRA)},
    )
