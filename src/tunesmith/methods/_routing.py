"""A block that only some tokens go through, and the cache that remembers which.

    hidden ─▶ router r, predictor p ─┬─ chosen  ─▶ block over the chosen alone ─▶ y + s tanh(r) (y - x) ─┬─▶ hidden
                                     └─ others  ─────────────── as they are ─────────────────────────────┘

A token that is not chosen has neither query nor key in the block: no other token can see it there, now or later. In a
forest the tokens of each segment are chosen by themselves, in padded rows those of each row, so that nothing of one
tree reaches another. With a cache, the block's layer of it holds the keys of chosen tokens only, with their places.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from tunesmith.methods._own import Part
from tunesmith.models.attention import no_mask
from tunesmith.models.forest import Layout, Segment

CACHES = ("past_key_values", "layer_past")
KNOWN = {"attention_mask", "position_ids", "position_embeddings", "use_cache", "output_attentions", *CACHES}
UNUSED = {"encoder_hidden_states", "encoder_attention_mask"}
"""What a block may be called with beside its hidden states; whatever else may depend on all tokens being there."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which tokens [B, T] went through a block, what the predictor says of each, and which are no padding."""

    passed: Tensor
    foretold: Tensor
    real: Tensor


class RoutedLayer(DynamicLayer):
    """A block's layer of the cache: keys of the tokens that went through it.

    places [B, S]: where each stands among all tokens, -1 for filling; seen: all tokens so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: Tensor | None = None
        self.seen = 0

    def offer(self, places: Tensor, tokens: int) -> None:
        """Note tokens that go through, and how many there were."""
        self.places = places if self.places is None else torch.cat([self.places, places], dim=1)
        self.seen += tokens

    @property
    def whole(self) -> bool:
        """Whether every token so far went through."""
        return self.seen == 0 or (self.places is not None and self.places.shape[1] == self.seen and self._filled)

    @property
    def _filled(self) -> bool:
        return self.places is not None and bool((self.places >= 0).all())

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, whether they went through or not; their columns are filling from now on."""
        self.seen -= abs(tokens_to_remove)
        if self.places is not None:
            self.places = self.places.masked_fill(self.places >= self.seen, -1)

    def reset(self) -> None:
        """Forget all."""
        super().reset()
        self.places, self.seen = None, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows in another order."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row so many times."""
        super().batch_repeat_interleave(repeats)
        self.places = None if self.places is None else self.places.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only these rows."""
        super().batch_select_indices(indices)
        self.places = None if self.places is None else self.places[indices]


class Routed(Part):
    """A block with a router and a predictor before it."""

    def __init__(self, block: nn.Module, number: int, capacity: float, hidden: int, middle: int) -> None:
        """number: which block of the model it is; middle: numbers in the middle of the predictor."""
        super().__init__()
        device = next(block.parameters()).device
        self.block = block
        self.number = number
        self.capacity = capacity
        self.router = nn.Parameter(torch.randn(hidden, device=device) / math.sqrt(hidden))
        self.gate = nn.Parameter(torch.zeros(1, device=device))
        self.predictor = nn.Sequential(
            nn.Linear(hidden, middle, device=device), nn.SiLU(), nn.Linear(middle, 1, device=device)
        )
        for start in self.predictor[2].parameters():
            nn.init.zeros_(start)
        self.choice: Choice | None = None
        self._signature = inspect.signature(block.forward)

    def own(self) -> Iterator[nn.Parameter]:
        return chain((self.router, self.gate), self.predictor.parameters())

    def __getattr__(self, name: str) -> Any:
        """What a model asks of its block beside calling it, such as the kind of its attention."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def forward(self, hidden_states: Tensor, *inputs: Any, **options: Any) -> Any:
        """[B, T, d] to [B, T, d], as the block is called."""
        if not self.on:
            return self.block(hidden_states, *inputs, **options)
        named = self._named(hidden_states, inputs, options)
        seen = F.rms_norm(hidden_states.float(), hidden_states.shape[-1:])
        scores = (seen * self.router.float()).sum(-1)
        foretold = self.predictor(seen.detach().to(next(self.predictor.parameters()).dtype)).float()[..., 0]
        if named.get("layout") is not None:
            return self._through_forest(hidden_states, scores, foretold, named)
        return self._through_rows(hidden_states, scores, foretold, named)

    def _named(self, hidden: Tensor, inputs: Sequence[Any], options: dict[str, Any]) -> dict[str, Any]:
        """What the block is called with, by name.

        Raises:
            NotImplementedError: something whose meaning for single tokens is not known.
        """
        bound = self._signature.bind(hidden, *inputs, **options).arguments
        named = {**bound, **bound.pop("kwargs", {})}
        named.pop("kwargs", None)
        named.pop(next(iter(self._signature.parameters)))
        if odd := [name for name, value in named.items() if isinstance(value, Tensor) and name not in KNOWN]:
            raise NotImplementedError(f"mixture of depths with {', '.join(odd)}")
        return named

    def _through_forest(self, hidden: Tensor, scores: Tensor, foretold: Tensor, named: dict[str, Any]) -> Tensor:
        layout: Layout = named["layout"]
        picked = [self._pick(scores[0], foretold[0], segment) for segment in layout.segments]
        index = torch.cat(picked)
        passed = torch.zeros_like(scores, dtype=torch.bool).index_fill(1, index, True)
        self.choice = Choice(passed, foretold, torch.ones_like(passed))
        if len(index) == 0:
            return hidden
        chosen = hidden[:, index]
        named = {
            **named,
            "attention_mask": no_mask(len(index), hidden.device),
            "layout": _thinned(layout, picked, index),
        }
        rows = index[None]
        out = self._gated(chosen, scores[:, index], self._block(chosen, _at(named, rows)))
        return hidden.to(out.dtype).index_copy(1, index, out)

    def _pick(self, scores: Tensor, foretold: Tensor, segment: Segment) -> Tensor:
        """Which tokens of a segment go through, as indices in the row, in order."""
        if self.capacity == 1:
            return torch.arange(segment.start, segment.stop, device=scores.device)
        part = slice(segment.start, segment.stop)
        if not self.training:
            return segment.start + (foretold[part] >= 0).nonzero()[:, 0]
        count = math.ceil(self.capacity * (segment.stop - segment.start))
        return segment.start + scores[part].detach().topk(count).indices.sort().values

    def _through_rows(self, hidden: Tensor, scores: Tensor, foretold: Tensor, named: dict[str, Any]) -> Tensor:
        cache = next((named[name] for name in CACHES if named.get(name) is not None), None)
        layer = None if cache is None else _layer(cache, self.number)
        mask = cast("Tensor | None", named.get("attention_mask"))
        real = _real(mask, hidden) if layer is None else torch.ones_like(scores, dtype=torch.bool)
        passed = self._chosen(scores.detach(), foretold, real)
        self.choice = Choice(passed, foretold, real)
        counts = passed.sum(dim=1)
        tokens, longest = hidden.shape[1], int(counts.max())
        index = passed.logical_not().int().argsort(dim=1, stable=True)[:, :longest]
        real_keys = torch.arange(longest, device=hidden.device) < counts[:, None]
        before = 0 if layer is None else layer.seen
        places = (index + before).masked_fill(~real_keys, -1)
        whole = bool(passed.all()) and (layer is None or layer.whole)
        if not whole:
            past = places[:, :0] if layer is None or layer.places is None else layer.places
            named = {**named, "attention_mask": _mask(mask, past, places, index + before, index)}
            named = _at(named, index)
        if layer is not None:
            layer.offer(places, tokens)
        if longest == 0:
            return hidden
        chosen = hidden if whole else _rows(hidden, index)
        r = scores if whole else scores.gather(1, index)
        out = self._gated(chosen, r, self._block(chosen, named))
        return out if whole else hidden.to(out.dtype).index_put(passed.nonzero(as_tuple=True), out[real_keys])

    def _chosen(self, scores: Tensor, foretold: Tensor, real: Tensor) -> Tensor:
        """[B, T] which tokens go through: the best of each row while training, else those that are foretold to be."""
        if self.capacity == 1:
            return torch.ones_like(real)
        if not self.training:
            return foretold >= 0
        counts = (self.capacity * real.sum(dim=1).double()).ceil()
        order = scores.masked_fill(~real, -torch.inf).argsort(dim=1, descending=True, stable=True)
        best = torch.arange(scores.shape[1], device=scores.device) < counts[:, None]
        return torch.zeros_like(real).scatter(1, order, best)

    def _block(self, chosen: Tensor, named: dict[str, Any]) -> Tensor:
        out = self.block(chosen, **named)
        return out[0] if isinstance(out, tuple) else out

    def _gated(self, before: Tensor, scores: Tensor, after: Tensor) -> Tensor:
        strength = (self.gate.float() * scores.tanh()).to(after.dtype)
        return after + strength[..., None] * (after - before)


def refused(block: nn.Module) -> list[str]:
    """What a block is called with that may depend on all tokens being there."""
    own = list(inspect.signature(block.forward).parameters.values())[1:]
    return [one.name for one in own if one.kind != one.VAR_KEYWORD and one.name not in KNOWN | UNUSED]


def _thinned(layout: Layout, picked: Sequence[Tensor], index: Tensor) -> Layout:
    """The tree over chosen tokens; a segment without any gives its place to its parent."""
    segments: list[Segment] = []
    numbers: list[int | None] = []
    start = 0
    for segment, own in zip(layout.segments, picked, strict=True):
        parent = None if segment.parent is None else numbers[segment.parent]
        numbers.append(len(segments) if len(own) else parent)
        if len(own):
            segments.append(Segment(start, start + len(own), parent))
        start += len(own)
    return replace(layout, segments=tuple(segments), positions=layout.positions[index])


def _at(named: dict[str, Any], index: Tensor) -> dict[str, Any]:
    """What belongs to each token, for some tokens [B, K] only."""
    found = dict(named)
    if named.get("position_ids") is not None:
        found["position_ids"] = named["position_ids"].expand(len(index), -1).gather(1, index)
    if named.get("position_embeddings") is not None:
        found["position_embeddings"] = tuple(_rows(part, index) for part in named["position_embeddings"])
    return found


def _rows(states: Tensor, index: Tensor) -> Tensor:
    """states [B or 1, T, d] at index [B, K]: [B, K, d]."""
    states = states.expand(len(index), -1, -1)
    return states.gather(1, index[..., None].expand(-1, -1, states.shape[-1]))


def _real(mask: Tensor | None, hidden: Tensor) -> Tensor:
    """[B, T] which tokens are no padding: those that see themselves."""
    if mask is None:
        return torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    return _allowed(mask).diagonal(dim1=-2, dim2=-1)[:, 0].expand(len(hidden), -1)


def _allowed(mask: Tensor) -> Tensor:
    """A mask [B, 1, T, S] as booleans.

    Raises:
        NotImplementedError: a mask of another kind.
    """
    if mask.ndim != 4:
        raise NotImplementedError("mixture of depths with this kind of attention mask")
    return mask if mask.dtype == torch.bool else mask == 0


def _mask(mask: Tensor | None, past: Tensor, own: Tensor, queries: Tensor, index: Tensor) -> Tensor:
    """[B, 1, K, S + K] which of the chosen tokens' keys, `past` [B, S] and `own` [B, K], each of them sees.

    queries, index [B, K]: the places of the chosen ones among all tokens and among the new ones. Filling sees itself.
    """
    keys = torch.cat([past, own], dim=1)
    if mask is None:
        sees = keys[:, None] <= queries[..., None]
    else:
        whole = _allowed(mask)[:, 0].expand(len(index), -1, -1)
        columns = keys.clamp_min(0)[:, None].expand(-1, index.shape[1], -1)
        sees = _rows(whole, index).gather(2, columns)
    sees = sees & (keys >= 0)[:, None]
    itself = torch.eye(own.shape[1], dtype=torch.bool, device=own.device)
    sees[:, :, past.shape[1] :] |= itself
    if mask is None or mask.dtype == torch.bool:
        return sees[:, None]
    return torch.zeros_like(sees, dtype=mask.dtype).masked_fill(~sees, torch.finfo(mask.dtype).min)[:, None]


def _layer(cache: Cache, number: int) -> RoutedLayer:
    """The block's layer of a cache, made one that remembers places.

    Raises:
        NotImplementedError: a cache of another kind.
    """
    if cache.layer_class_to_replicate is not None:
        while len(cache.layers) <= number:
            cache.layers.append(cache.layer_class_to_replicate())
    found = cache.layers[number]
    if isinstance(found, RoutedLayer):
        return found
    if type(found) is not DynamicLayer or found.get_seq_length():
        raise NotImplementedError(f"mixture of depths with a cache of {type(found).__name__}")
    cache.layers[number] = RoutedLayer()
    return cache.layers[number]  # type: ignore[return-value]
