"""Forest attention by FlexAttention: one compiled kernel that skips the blocks of a forest where nothing is seen.

It computes what flash attention's kernels do not: scores with a soft cap, and float32 (arXiv:2412.05496). The kernel is
compiled when it is first used, for batches of any length.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from tunesmith.models.attention import Ask
from tunesmith.models.device import product_type
from tunesmith.models.fast._states import alike
from tunesmith.models.fast._tree import block_mask
from tunesmith.models.forest import Layout

LEAST = 16
"""The narrowest head that the compiled kernel computes."""

Score = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class Flex:
    """The kernel over whole forests, in any number type that the GPU multiplies."""

    def __init__(self, attend: Callable[..., Any] | None = None, device: str = "cuda") -> None:
        """attend: FlexAttention's function, by default compiled; device: the kind of device it is for."""
        self.attend = attend
        self.device = device

    def takes(self, query: Tensor, value: Tensor, ask: Ask) -> bool:
        width = query.shape[-1]
        fits = width >= LEAST and ask.dropout == 0
        return fits and query.device.type == self.device and product_type(query) != torch.float64

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, ask: Ask) -> Tensor:
        mask = block_mask(layout, ask.window)
        query, key, value = alike(query, key, value, ask)
        out = (self.attend or _compiled())(
            query,
            key,
            value,
            score_mod=None if ask.softcap is None else _capped(ask.softcap),
            block_mask=mask,
            scale=ask.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return out.transpose(1, 2)


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)


@cache
def _capped(cap: float) -> Score:
    """The soft cap on a score; one function for each cap, so that the kernel is compiled once."""

    def bounded(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return bounded
