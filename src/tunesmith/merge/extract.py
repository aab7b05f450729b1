# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
"""A LoRA adapter out of the difference of two models, matrix by matrix:  W' - W ≈ B A  of rank k (SVD).

    base shards ─┐
    tuned shards ┴─▶ one weight at a time ─▶ nearest of rank k, its error ─▶ adapter over the base

What an adapter cannot hold (embeddings, norms, biases that moved) is counted and said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from tunesmith.core.problem import Problem
from tunesmith.core.problem import nearest as nearest_name
from tunesmith.merge.adapter_file import write_adapter
from tunesmith.merge.factors import Distance, Factors, nearest
from tunesmith.models.load import skeleton
from tunesmith.models.source import Found, find

LAYERS = re.compile(r"\.\d+\.")
"""Weights in a layer have its number in their name; adapters change these."""


@dataclass(frozen=True)
class Extracted:
    """An adapter out of a difference. errors: relative error of each weight; left: what moved and is not in it."""

    folder: Path
    rank: int
    distance: Distance
    errors: dict[str, float]
    left: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """What a person should know."""
        said = [
            f"adapter: {self.folder} (rank {self.rank}, {len(self.errors)} weights)",
            f"lost of the change: {self.distance.relative:.1%} of its length; most in {self.distance.where} "
            f"({self.distance.worst:.1%})",
        ]
        if self.left:
            shown = ", ".join(self.left[:3]) + (" …" if len(self.left) > 3 else "")
            said.append(f"not in the adapter: {len(self.left)} other weights that differ ({shown})")
        return said


@dataclass
class _Found:
    changes: dict[str, Factors] = field(default_factory=dict[str, Factors])
    errors: dict[str, float] = field(default_factory=dict[str, float])
    left: list[str] = field(default_factory=list[str])
    distance: Distance = field(default_factory=Distance)


def extract(
    tuned: str,
    base: str,
    output: Path,
    *,
    rank: int = 16,
    targets: tuple[str, ...] = (),
    hear: Callable[[str], None] = lambda text: None,
) -> Extracted:
    """Make a LoRA adapter of what a tuned model changed in its base.

    rank: of the adapter; targets: ends of names of layers, such as q_proj; by default every matrix inside layers.

    Raises:
        Problem: the two are not models of the same shapes, nothing differs, or a target matches nothing.
    """
    left, right = _plain(tuned), _plain(base)
    found = _Found()
    transposed = _transposed(right)
    weights = dict(_pairs(left, right))
    _check_targets(targets, weights)
    for name, shards in weights.items():
        hear(name)
        delta = _delta(name, *(_tensor(shard, name) for shard in shards))
        if _is_target(name, delta, targets):
            _take(name, delta.T if name in transposed else delta, rank, found)
        elif bool(delta.any()):
            found.left.append(name)
    if not found.changes:
        raise Problem(tuned, f"does not differ from {base} in any matrix of its layers", "Check which models these are")
    write_adapter(output, found.changes, right, transposed=bool(transposed))
    return Extracted(output, rank, found.distance, found.errors, tuple(found.left))


def _delta(name: str, tuned: Tensor, base: Tensor) -> Tensor:
    if tuned.shape != base.shape:
        raise Problem(name, f"is {tuple(tuned.shape)} in one model and {tuple(base.shape)} in the other", "")
    return tuned.float() - base.float()


def _take(name: str, delta: Tensor, rank: int, found: _Found) -> None:
    """Keep the nearest change of the rank; a weight that did not move needs none."""
    if bool(delta.any()):
        found.changes[name] = nearest(delta, rank)
        found.errors[name] = found.distance.add(name, found.changes[name].dense(), delta)


def _transposed(base: Found) -> frozenset[str]:
    """Weights that the architecture holds as [in, out]."""
    modules = skeleton(base).named_modules()
    return frozenset(f"{name}.weight" for name, module in modules if isinstance(module, Conv1D))


def _is_target(name: str, delta: Tensor, targets: tuple[str, ...]) -> bool:
    inside = delta.ndim == 2 and LAYERS.search(name) is not None and name.endswith(".weight")
    return inside and (not targets or any(name.removesuffix(".weight").endswith(target) for target in targets))


def _check_targets(targets: tuple[str, ...], names: dict[str, tuple[Path, Path]]) -> None:
    modules = sorted({name.removesuffix(".weight").rpartition(".")[2] for name in names if LAYERS.search(name)})
    for target in targets:
        if not any(name.removesuffix(".weight").endswith(target) for name in names):
            raise Problem("--targets", f"no layer's name ends in {target!r}", nearest_name(target, modules))


def _plain(path: str) -> Found:
    found = find(path)
    if found.adapter is not None:
        raise Problem(path, "is an adapter already", "Give whole models: what it was folded into, and its base")
    return found


def _pairs(tuned: Found, base: Found) -> Iterator[tuple[str, tuple[Path, Path]]]:
    """Each weight's name with the shards that hold it, in the order of the base."""
    own, other = _places(tuned), _places(base)
    tied = {name for name in own.keys() ^ other.keys() if name.startswith("lm_head.")}
    if odd := sorted((own.keys() ^ other.keys()) - tied):
        raise Problem(
            str(tuned.base), f"has other weights than {base.base} ({', '.join(odd[:3])})", "Give a model and its base"
        )
    for name, shard in other.items():
        if name in own:
            yield name, (own[name], shard)


def _places(found: Found) -> dict[str, Path]:
    out: dict[str, Path] = {}
    for shard in sorted(found.base.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as tensors:
            out |= dict.fromkeys(tensors.keys(), shard)
    return out


def _tensor(shard: Path, name: str) -> Tensor:
    with safe_open(shard, framework="pt") as tensors:
        return torch.as_tensor(tensors.get_tensor(name))
