"""Attention over a forest, behind one function that transformers calls for every layer.

It is registered with transformers' attention interface under the name `NAME`, so the models' own code runs
unchanged. With a forest (`layout`) the queries of each segment meet the keys of their ancestors and their own and
nothing else is computed; without one it is plain masked attention, as generation with a cache needs it.

Segment by segment is the plain twin, which runs everywhere. Where a lever has put kernels on a layer (`give_kernels`),
the first of them that takes what is asked computes the whole forest at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from tunesmith.models.forest import Layout

NAME = "tunesmith_forest"
KERNELS = "forest_kernels"
"""The attribute of a layer that holds its kernels."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a layer wants of attention beside its states.

    scale: of the scores; window: how many tokens a query sees, itself among them, None for all; softcap: bound of the
    scores, None for none; dropout: of the shares; before: keys and values [1, G, n, D] above every root, if there are.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    dropout: float = 0.0
    before: tuple[Tensor, Tensor] | None = None


class Kernel(Protocol):
    """Attention over a whole forest at once."""

    def takes(self, query: Tensor, value: Tensor, ask: Ask) -> bool:
        """Whether it computes this, in this number type and on this device."""
        ...

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, ask: Ask) -> Tensor:
        """Query [1, H, N, D], key and value [1, G, N, D]; returns [1, N, H, D]."""
        ...


def give_kernels(model: nn.Module, kernels: Sequence[Kernel]) -> int:
    """Put kernels on every layer of a model, in the order in which they are asked; none takes them off.

    Returns how many layers there are.
    """
    layers = [part for part in model.modules() if hasattr(part, "layer_idx") and hasattr(part, "is_causal")]
    for layer in layers:
        vars(layer)[KERNELS] = tuple(kernels)
    return len(layers)


def kernels_of(model: nn.Module) -> tuple[Kernel, ...]:
    """The kernels on a model's layers."""
    return next((vars(part)[KERNELS] for part in model.modules() if KERNELS in vars(part)), ())


def forest_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **unknown: Any,
) -> tuple[Tensor, None]:
    """Attention of query [1, H, N, D] to key and value [1, G, N, D] (H a multiple of G); returns [1, N, H, D].

    Raises:
        NotImplementedError: the architecture asks for attention sinks or position biases, which this does not have.
    """
    for name in ("s_aux", "position_bias"):
        if unknown.get(name) is not None:
            raise NotImplementedError(f"attention with {name}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if layout is None:
        causal = attention_mask is None and query.shape[2] > 1 and getattr(module, "is_causal", True)
        return _attend(query, key, value, attention_mask, causal, scale, dropout, softcap), None
    before = layout.past[module.layer_idx] if layout.past else None  # type: ignore[index]
    ask = Ask(scale, sliding_window, softcap, dropout, before)
    for kernel in vars(module).get(KERNELS, ()):
        if kernel.takes(query, value, ask):
            return kernel(query, key, value, layout, ask), None
    return by_segment(query, key, value, layout, ask), None


def by_segment(query: Tensor, key: Tensor, value: Tensor, layout: Layout, ask: Ask) -> Tensor:
    """Attention over a forest, one segment after the other; the shapes are those of a `Kernel`.

    States are split once, not sliced a segment at a time: autograd would add up one whole row for each slice.
    """
    lengths = [segment.stop - segment.start for segment in layout.segments]
    queries, keys, values = (states.split(lengths, dim=2) for states in (query, key, value))
    number_at = {segment.start: number for number, segment in enumerate(layout.segments)}
    before = ask.before or (None, None)
    parts = []
    for number, above in enumerate(layout.ancestors):
        path = [*(number_at[part.start] for part in above), number]
        mask = layout.mask(number, ask.window)
        parts.append(
            _attend(
                queries[number],
                _behind(before[0], [keys[part] for part in path]),
                _behind(before[1], [values[part] for part in path]),
                mask,
                mask is None,
                ask.scale,
                ask.dropout,
                ask.softcap,
            )
        )
    return torch.cat(parts, dim=1)


def _behind(before: Tensor | None, parts: list[Tensor]) -> Tensor:
    """Keys or values of some segments in a row, behind those that stand before all of them."""
    if before is not None:
        parts = [before.to(parts[0].dtype), *parts]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    dropout: float,
    softcap: float | None,
) -> Tensor:
    if softcap is not None:
        return _attend_capped(query, key, value, mask, causal, scale, dropout, softcap)
    grouped = query.shape[1] != key.shape[1]
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=grouped
    )
    return out.transpose(1, 2)


def _attend_capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    dropout: float,
    softcap: float,
) -> Tensor:
    """Attention with soft-capped scores (Gemma 2): cap * tanh(scores / cap), which SDPA cannot do."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scale / softcap)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        # The lowest number instead of -inf: a padded query that sees no key at all must not become NaN.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    shares = F.dropout(scores.float().softmax(dim=-1).to(query.dtype), p=dropout)
    return (shares @ value).transpose(1, 2)


def no_mask(length: int, device: torch.device) -> Tensor:
    """A mask of the shape [1, 1, N, N] that takes no memory: models pass it on, and forest attention ignores it."""
    return torch.ones((), dtype=torch.bool, device=device).expand(1, 1, length, length)


AttentionInterface.register(NAME, forest_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
