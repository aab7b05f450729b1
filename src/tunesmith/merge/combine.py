# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
"""Several LoRA adapters made into one, in the space of what they change.

    sum          W + Σ w_i s_i B_i A_i       exact: factors side by side, of rank Σ r_i
    --rank k     the nearest change of rank k (SVD); how much is lost is measured
    --method     ties, dare_ties … over the changes Δ_i as task vectors, then the nearest of rank k

A and B are never added up apart, which is no sum of the changes. Whatever comes out is compared with the true sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from tunesmith.core.plugins import build
from tunesmith.core.plugins import find as plugin
from tunesmith.core.problem import Problem
from tunesmith.merge.adapter_file import CONFIG, write_adapter
from tunesmith.merge.choices import options_of
from tunesmith.merge.factors import Distance, Factors, joined, nearest
from tunesmith.merge.lowrank import Adapter, Change, read_adapter
from tunesmith.merge.methods import Block, MergeMethod, Whole
from tunesmith.models.source import Found, find, read_json

SUM = "sum"


@dataclass(frozen=True)
class Part:
    """An adapter and its weight in a combination."""

    target: str
    weight: float

    @classmethod
    def of(cls, text: str) -> Part:
        """From `FOLDER` or `FOLDER:WEIGHT`."""
        target, _, weight = text.rpartition(":")
        try:
            return cls(target, float(weight)) if target else cls(text, 1.0)
        except ValueError:
            return cls(text, 1.0)


@dataclass(frozen=True)
class Combined:
    """What was made: its folder, its largest rank, and how far it is from the true weighted sum."""

    folder: Path
    rank: int
    method: str
    distance: Distance

    @property
    def lines(self) -> list[str]:
        """What a person should know."""
        away = f"{self.distance.relative:.1e} of its length over all weights"
        worst = f"at most {self.distance.worst:.1e} ({self.distance.where})"
        said = [
            f"adapter: {self.folder} (rank {self.rank})",
            f"away from the weighted sum of the changes: {away}, {worst}",
        ]
        if self.method != SUM:
            said.append(f"{self.method} is meant to differ from the sum: what models disagree about is left out")
        return said


@dataclass(frozen=True)
class _Source:
    """An adapter that was read: where it is, its changes, its weight."""

    found: Found
    adapter: Adapter
    weight: float

    @property
    def folder(self) -> Path:
        return cast(Path, self.found.adapter)

    def factors(self, name: str) -> Factors | None:
        """Its weighted change of a weight, if it is of low rank; None for no change."""
        change = self.adapter.changes.get(name)
        if change is None:
            return None
        assert change.up is not None and change.down is not None
        return Factors(self.weight * change.scale * change.up.float(), change.down.float())


def combine(
    parts: Sequence[Part],
    output: Path,
    *,
    method: str = SUM,
    rank: int | None = None,
    options: Mapping[str, object] | None = None,
    seed: int = 0,
    hear: Callable[[str], None] = lambda text: None,
) -> Combined:
    """Make one LoRA adapter of several over the same base.

    method: `sum`, or a merge method over task vectors; options: that method's own; rank: of the result, by default
    as large as the exact sum needs; seed: what methods that draw at random draw by.

    Raises:
        Problem: adapters that cannot be combined, with the reason.
    """
    sources = [_read(part) for part in parts]
    _check(sources, rank)
    merger = None if method == SUM else _merger(method, sources, options or {})
    distance = Distance()
    changes: dict[str, Factors] = {}
    for name, wanted, bases in _weights(sources):
        hear(name)
        changes[name] = _one(name, sources, merger, rank, wanted, bases, seed)
        distance.add(name, changes[name].dense(), wanted)
    transposed = any(change.transposed for source in sources for change in source.adapter.changes.values())
    task = str(read_json(sources[0].folder / CONFIG).get("task_type"))
    write_adapter(output, changes, sources[0].found, transposed=transposed, task=task)
    return Combined(output, max(change.rank for change in changes.values()), method, distance)


def _one(
    name: str,
    sources: Sequence[_Source],
    merger: MergeMethod | None,
    rank: int | None,
    wanted: Tensor,
    deltas: Sequence[Tensor] | None,
    seed: int,
) -> Factors:
    """The combined change of one weight; deltas: the unweighted changes, where they are needed whole."""
    thin = [factors for source in sources if (factors := source.factors(name)) is not None]
    full = sum(part.rank for part in thin)
    if merger is not None:
        whole = [source.adapter.changes.get(name) for source in sources]
        dense = deltas or [torch.zeros_like(wanted) if change is None else _dense(change) for change in whole]
        return nearest(_merged(merger, dense, name, seed), rank or min(full, *wanted.shape))
    if deltas is not None:
        return nearest(wanted, cast(int, rank))
    exact = joined(thin)
    return exact if rank is None else exact.shortened(rank)


def _weights(sources: Sequence[_Source]) -> Iterator[tuple[str, Tensor, list[Tensor] | None]]:
    """Each weight that any adapter changes, the true weighted sum, and the single changes where one is no product."""
    names = sorted({name for source in sources for name in source.adapter.changes})
    for name in names:
        if any(_is_dora(source, name) for source in sources):
            deltas = [_against_base(source, name) for source in sources]
            shape = next(delta.shape for delta in deltas if delta is not None)
            filled = [torch.zeros(shape) if delta is None else delta for delta in deltas]
            total = sum(source.weight * delta for source, delta in zip(sources, filled, strict=True))
            yield name, cast(Tensor, total), filled
        else:
            yield name, joined([f for source in sources if (f := source.factors(name))]).dense(), None


def _merged(merger: MergeMethod, deltas: Sequence[Tensor], name: str, seed: int) -> Tensor:
    """What a merge method makes of changes, over a base of zero."""

    def read(number: int) -> Block:
        base = np.zeros(tuple(deltas[0].shape), np.float32)
        fresh = tuple(delta.numpy().copy() for delta in deltas)
        return Block(base, fresh, number, lambda model: np.random.default_rng([seed, model, *name.encode()]))

    known = merger.measure(Whole(tuple(deltas[0].shape), 1, read))
    return torch.from_numpy(np.ascontiguousarray(merger.merge(read(0), known), np.float32))


def _dense(change: Change) -> Tensor:
    assert change.up is not None and change.down is not None
    return change.scale * (change.up.float() @ change.down.float())


def _is_dora(source: _Source, name: str) -> bool:
    change = source.adapter.changes.get(name)
    return change is not None and change.magnitude is not None


def _against_base(source: _Source, name: str) -> Tensor | None:
    """What an adapter changes of the base's own weight [out, in]."""
    change = source.adapter.changes.get(name)
    if change is None:
        return None
    weight = _base_weight(source.found, name)
    delta = change.apply(weight) - weight.float()
    return delta.T.contiguous() if change.transposed else delta


def _base_weight(found: Found, name: str) -> Tensor:
    for shard in sorted(found.base.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                return tensors.get_tensor(name)
    raise Problem(str(found.base), f"has no weight {name}, which an adapter changes", "The adapter is of another model")


def _read(part: Part) -> _Source:
    found = find(part.target)
    if found.adapter is None:
        raise Problem(part.target, "holds plain weights, not an adapter", "Merge whole models with: tunesmith merge")
    adapter = read_adapter(found.adapter)
    if adapter is None:
        raise Problem(
            part.target,
            "is an adapter that is not made of low-rank factors alone (LoRA or DoRA), so it cannot be combined",
            "Fold it (tunesmith fold) and merge the folded models",
        )
    if replaced := sorted(name for name, change in adapter.changes.items() if change.value is not None):
        raise Problem(
            part.target,
            f"replaces whole layers ({', '.join(replaced[:3])}), of which there is no sum",
            "Fold the adapters and merge the folded models",
        )
    return _Source(found, adapter, part.weight)


def _check(sources: Sequence[_Source], rank: int | None) -> None:
    if not sources:
        raise Problem("adapters", "none are named", "Name some: tunesmith adapters combine A:0.5 B:0.5 --output OUT")
    if len({source.found.base for source in sources}) > 1:
        bases = ", ".join(sorted({source.found.name for source in sources}))
        raise Problem("adapters", f"belong to different base models ({bases})", "Combine adapters of one base")
    if not all(math.isfinite(source.weight) for source in sources):
        raise Problem("adapters", "have weights that are no finite numbers", "Write FOLDER:0.5")
    if rank is None and (dora := [s for s in sources if any(_is_dora(s, name) for name in s.adapter.changes)]):
        raise Problem(
            str(dora[0].folder),
            "is DoRA, whose change of a weight is not of low rank, so there is no exact sum",
            "Give --rank, and see what is lost; or name the adapters in a recipe of tunesmith merge",
        )


def _merger(method: str, sources: Sequence[_Source], options: Mapping[str, object]) -> MergeMethod:
    weights = tuple(source.weight for source in sources)
    merger = cast(MergeMethod, build("merge", {method: {"weight": weights, **_each(method, options, len(sources))}}))
    if merger.base != "required":
        raise Problem(
            f"--method {method}",
            "does not work on changes over a base",
            "Use sum, ties, dare_linear, dare_ties, breadcrumbs or della",
        )
    return merger


def _each(method: str, options: Mapping[str, object], count: int) -> dict[str, object]:
    """The options of a method; those that have a value a model get one value for all."""
    each = {
        option.name: option for option in options_of(cast("type[MergeMethod]", plugin("merge", method))) if option.each
    }
    given = {**{name: option.default for name, option in each.items() if not option.required}, **options}
    return {name: (value,) * count if name in each else value for name, value in given.items()}
