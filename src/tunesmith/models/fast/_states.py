"""Queries, keys and values in the form that kernels of attention want them."""

from __future__ import annotations

import torch
from torch import Tensor

from tunesmith.models.attention import Ask
from tunesmith.models.device import product_type

HALF = (torch.float16, torch.bfloat16)


def alike(query: Tensor, key: Tensor, value: Tensor, ask: Ask) -> tuple[Tensor, Tensor, Tensor]:
    """The three in one number type, keys and values [1, G, n + N, D] behind those that stand above every root."""
    if ask.before is not None:
        key, value = (
            torch.cat([above.to(part.dtype), part], dim=2) for above, part in zip(ask.before, (key, value), strict=True)
        )
    kind = product_type(query)
    return query.to(kind), key.to(kind), value.to(kind)
