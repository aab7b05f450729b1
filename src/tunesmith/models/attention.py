"""Attention over a forest, behind one function that transformers calls for every layer.

It is registered with transformers' attention interface under the name `NAME`, so the models' own code runs
unchanged. With a forest (`layout`) the queries of each segment meet the keys of their ancestors and their own and
nothing else is computed; without one it is plain masked attention, as generation with a cache needs it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from tunesmith.models.forest import Layout

NAME = "tunesmith_forest"


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
    parts = []
    before = layout.past[module.layer_idx] if layout.past else (None, None)  # type: ignore[index]
    for number, segment in enumerate(layout.segments):
        spans = [*layout.ancestors[number], segment]
        mask = layout.mask(number, sliding_window)
        parts.append(
            _attend(
                query[:, :, segment.start : segment.stop],
                _gather(key, spans, before[0]),
                _gather(value, spans, before[1]),
                mask,
                mask is None,
                scale,
                dropout,
                softcap,
            )
        )
    return torch.cat(parts, dim=1), None


def _gather(states: Tensor, spans: list[Any], before: Tensor | None) -> Tensor:
    """Keys or values of some segments in a row, behind those that stand before all of them."""
    parts = [] if before is None else [before.to(states.dtype)]
    parts += [states[:, :, span.start : span.stop] for span in spans]
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
