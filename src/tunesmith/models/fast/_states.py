"""Queries, keys and values in the form that kernels of attention want them."""

from __future__ import annotations

import torch
from torch import Tensor

from tunesmith.models.attention import Ask

HALF = (torch.float16, torch.bfloat16)


def product_type(query: Tensor) -> torch.dtype:
    """The number type of products: the query's, or autocast's where it is on, since it does not know these kernels."""
    kind = query.device.type
    cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if cast else query.dtype


def alike(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> tuple[Tensor, Tensor, Tensor]:
    """The three in one number type, keys and values [1, G, n + N, D] behind those that stand above every root."""
    if ask.before is not None:
        key, value = (
            torch.cat([above.to(part.dtype), part], dim=2) for above, part in zip(ask.before, (key, value), strict=True)
        )
    kind = product_type(query)
    return query.to(kind), key.to(kind), value.to(kind)
