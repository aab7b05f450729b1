"""The directions in which the inputs of a model's layers vary most, found while batches run through it.

    batch ─▶ model ─▶ input [tokens, in] of each layer ─▶ principal components, until they stay where they are

Layers that read the same input share one analysis. Padding is left out where a mask says what is padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from peft.utils.incremental_pca import IncrementalPCA
from torch import Tensor, nn

from tunesmith.models.forest import Batch

SETTLED = 0.99
"""Cosine of a direction before and after a batch from which on it counts as found."""
MOST_BATCHES = 64


@dataclass(frozen=True, slots=True)
class Directions:
    """Of one layer's inputs: vectors [k, in] of length one, and [k] the share of the variance that each explains."""

    vectors: Tensor
    shares: Tensor


def principal_inputs(
    run: Callable[[Batch], object],
    model: nn.Module,
    layers: Mapping[str, tuple[nn.Module, int]],
    batches: Iterable[Batch],
) -> dict[str, Directions]:
    """The principal directions of each layer's inputs; a layer that saw too few tokens is left out.

    run: what a batch is done with; layers: by name the layer and how many directions are wanted.
    """
    inputs = _Inputs({name: layer for name, (layer, _) in layers.items()})
    found: dict[str, _Analysis] = {}
    with torch.no_grad(), inputs.watched(model):
        for batch in islice(batches, MOST_BATCHES):
            inputs.seen.clear()
            run(batch)
            for name, values in inputs.seen.items():
                wanted = max(count for other, (_, count) in layers.items() if inputs.same[other] == name)
                found.setdefault(name, _Analysis(wanted)).add(values)
            if found and all(analysis.settled for analysis in found.values()):
                break
    done = {name: analysis.result() for name, analysis in found.items() if analysis.ready}
    shared = {name: done[inputs.same[name]] for name in layers if inputs.same.get(name) in done}
    return {name: _first(shared[name], layers[name][1]) for name in shared}


def _first(found: Directions, count: int) -> Directions:
    return Directions(found.vectors[:count], found.shares[:count])


@dataclass
class _Inputs:
    """Collects what layers read in one pass, once for those that read the very same tensor."""

    layers: Mapping[str, nn.Module]
    seen: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    same: dict[str, str] = field(default_factory=dict[str, str])
    _last: tuple[str, Tensor] | None = None
    _masks: dict[torch.Size, Tensor] = field(default_factory=dict[torch.Size, Tensor])

    @contextmanager
    def watched(self, model: nn.Module) -> Iterator[None]:
        handles = [module.register_forward_pre_hook(self._mask, with_kwargs=True) for module in model.modules()]
        handles += [layer.register_forward_pre_hook(self._reader(name)) for name, layer in self.layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._last = None

    def _mask(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        for name in ("attention_mask", "encoder_attention_mask"):
            mask = kwargs.get(name)
            if isinstance(mask, Tensor) and mask.ndim == 2:
                self._masks[mask.shape] = mask.bool()

    def _reader(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def read(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            values = args[0]
            if self._last is not None and values is self._last[1]:
                self.same[name] = self.same[self._last[0]]
                return
            self.same[name] = name
            self._last = (name, values)
            mask = self._masks.get(values.shape[:-1])
            rows = values[mask] if mask is not None else values.flatten(0, -2)
            self.seen[name] = rows.float()

        return read


class _Analysis:
    """Principal components that grow with every part of the data."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.settled = False
        self.waiting: list[Tensor] = []
        self.components: IncrementalPCA | None = None

    @property
    def ready(self) -> bool:
        return self.components is not None

    def add(self, values: Tensor) -> None:
        """Take rows [tokens, in] in, once there are enough of them for the directions wanted."""
        self.waiting.append(values)
        width = min(2 * self.wanted, values.shape[-1])
        if sum(len(part) for part in self.waiting) < width:
            return
        rows, self.waiting = torch.cat(self.waiting), []
        before = None if self.components is None else self.components.components_
        if self.components is None:
            self.components = IncrementalPCA(self.wanted, lowrank=True, lowrank_q=width, lowrank_seed=0)
        self.components.partial_fit(rows)
        after = self.components.components_
        self.settled = before is not None and bool((torch.cosine_similarity(before, after) >= SETTLED).all())

    def result(self) -> Directions:
        assert self.components is not None
        return Directions(self.components.components_, self.components.explained_variance_ratio_)
