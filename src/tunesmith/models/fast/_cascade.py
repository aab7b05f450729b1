"""Forest attention in parts: each segment to itself, then all that goes on from a segment to its keys, in one call.

    out = sum_i exp(lse_i - lse) out_i,   lse = logsumexp_i lse_i            i: the parts of a query's path

So keys of a shared prompt are never laid out once for each answer (Juravsky et al., arXiv:2402.05099). Gradients come
part by part too: a part's kernel, given the whole's `out` and `lse`, sees the whole's shares and gives its own part of
them (Liu et al., arXiv:2310.01889). It is used where much would be laid out; else segment by segment is as good.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from tunesmith.models.attention import Ask, by_segment
from tunesmith.models.device import product_type
from tunesmith.models.forest import Layout, Segment

TYPES = (torch.float32, torch.float64)
MUCH = 0.5
"""Keys of ancestors that would be laid out, for each token of the forest."""

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_back = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

Places = slice | Tensor


class Parts(NamedTuple):
    """own: the tokens of each segment; above: keys that stand before others, and the queries that go on from them;
    whole: whether they are used, since enough would be laid out else.
    """

    own: list[slice]
    above: list[tuple[slice, Places]]
    whole: bool


class Cascade:
    """The kernel over whole forests, in 32 or 64 bits on a processor."""

    def takes(self, query: Tensor, value: Tensor, ask: Ask) -> bool:
        plain = ask.window is None and ask.softcap is None and ask.dropout == 0
        alike = query.shape[-1] == value.shape[-1] and query.dtype == value.dtype == product_type(query)
        return plain and alike and query.device.type == "cpu" and query.dtype in TYPES

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, ask: Ask) -> Tensor:
        if Parts not in layout.kept:
            layout.kept[Parts] = _found(layout)
        parts: Parts = layout.kept[Parts]
        if not parts.whole:
            return by_segment(query, key, value, layout, ask)
        before = () if ask.before is None else tuple(part.to(query.dtype) for part in ask.before)
        return _Forest.apply(query, key, value, parts, ask.scale, *before)  # type: ignore[no-any-return]


def _found(layout: Layout) -> Parts:
    segments = [segment for segment in layout.segments if segment.stop > segment.start]
    below: dict[Segment, list[Segment]] = {}
    for segment, line in zip(layout.segments, layout.ancestors, strict=True):
        for part in line if segment.stop > segment.start else ():
            below.setdefault(part, []).append(segment)
    laid_out = sum((part.stop - part.start) * len(some) for part, some in below.items())
    laid_out += layout.past_length * len(segments)
    above = [(slice(part.start, part.stop), _places(some)) for part, some in below.items()]
    own = [slice(segment.start, segment.stop) for segment in segments]
    return Parts(own, above, laid_out > MUCH * len(layout.positions))


def _places(some: list[Segment]) -> Places:
    """The tokens of some segments: a slice where they stand one behind the other."""
    if all(one.stop == two.start for one, two in pairwise(some)):
        return slice(some[0].start, some[-1].stop)
    return torch.cat([torch.arange(segment.start, segment.stop) for segment in some])


class _Forest(Function):
    """Query [1, H, N, D], key and value [1, G, N, D], those before every root [1, G, n, D]; gives [1, N, H, D]."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, parts: Parts, scale: float, *before: Tensor
    ) -> Tensor:
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        lse = query.new_empty(query.shape[:3])
        for at in parts.own:
            out[:, :, at], lse[:, :, at] = _attend(
                query[:, :, at], key[:, :, at], value[:, :, at], 0.0, True, scale=scale
            )
        for keys, values, places in _above(key, value, parts, before):
            found, more = _attend(query[:, :, places], keys, values, 0.0, False, scale=scale)
            old = lse[:, :, places]
            new = torch.logaddexp(old, more)
            share = (old - new).exp_().unsqueeze(-1)
            out[:, :, places] = (out[:, :, places] * share).addcmul_(found, (more - new).exp_().unsqueeze(-1))
            lse[:, :, places] = new
        ctx.save_for_backward(query, key, value, out, lse, *before)
        ctx.parts, ctx.scale = parts, scale
        return out.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, out, lse, *before = ctx.saved_tensors
        dout, parts = grads[0].transpose(1, 2), ctx.parts

        def slopes(places: Places, keys: Tensor, values: Tensor, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
            whole = dout[:, :, places], query[:, :, places], keys, values, out[:, :, places], lse[:, :, places]
            return _attend_back(*whole, 0.0, causal, scale=ctx.scale)  # type: ignore[no-any-return]

        dq, dk, dv = (torch.empty_like(part) for part in (query, key, value))
        for at in parts.own:
            dq[:, :, at], dk[:, :, at], dv[:, :, at] = slopes(at, key[:, :, at], value[:, :, at], True)
        first: list[Tensor] = []
        for number, (keys, values, places) in enumerate(_above(key, value, parts, before)):
            more, *rest = slopes(places, keys, values, False)
            dq[:, :, places] += more
            if before and number == 0:
                first = rest
            else:
                at = parts.above[number - bool(before)][0]
                dk[:, :, at] += rest[0]
                dv[:, :, at] += rest[1]
        return dq, dk, dv, None, None, *first


def _above(key: Tensor, value: Tensor, parts: Parts, before: Any) -> list[tuple[Tensor, Tensor, Places]]:
    """Keys and values that stand above, those before every root first, and the queries that see them whole."""
    first = [(before[0], before[1], slice(0, key.shape[2]))] if before else []
    return [*first, *((key[:, :, at], value[:, :, at], places) for at, places in parts.above)]
