"""Forest attention by flash attention's kernel for sequences of many lengths: one call for all segments of a layer.

Each segment's queries meet the keys of its path (`_paths`). Keys of a shared prompt are laid out once for each segment
below it, for the key heads alone, which is little beside what is computed (FlashAttention-2, arXiv:2307.08691).
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable

from torch import Tensor

from tunesmith.models.attention import Ask
from tunesmith.models.device import product_type
from tunesmith.models.fast._paths import Paths, paths_of
from tunesmith.models.fast._states import HALF, alike
from tunesmith.models.forest import Layout

WIDEST = 256
"""The widest head that these kernels compute."""

Flash = Callable[[Tensor, Tensor, Tensor, Paths, Ask], Tensor]
"""Query [N, H, D], key and value [K, G, D] of paths one behind the other; returns [N, H, D]."""


class Varlen:
    """The kernel over whole forests, in 16 bits on an NVIDIA GPU."""

    def __init__(self, flash: Flash, *, caps: bool, device: str = "cuda") -> None:
        """flash: the library's function; caps: whether it bounds scores; device: the kind of device it is for."""
        self.flash = flash
        self.caps = caps
        self.device = device

    def takes(self, query: Tensor, value: Tensor, ask: Ask) -> bool:
        width = query.shape[-1]
        fits = width == value.shape[-1] and width % 8 == 0 and width <= WIDEST
        plain = ask.dropout == 0 and (self.caps or ask.softcap is None)
        return fits and plain and query.device.type == self.device and product_type(query) in HALF

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, ask: Ask) -> Tensor:
        paths = paths_of(layout)
        query, key, value = (part[0].transpose(0, 1) for part in alike(query, key, value, ask))
        if paths.order is not None:
            key, value = key.index_select(0, paths.order), value.index_select(0, paths.order)
        return self.flash(query, key, value, paths, ask)[None]


def library() -> Varlen | str:
    """The kernel of the library that is installed, or why there is none: flash-attn's before torch's own."""
    if importlib.util.find_spec("flash_attn") is not None:
        return Varlen(_of_flash_attn, caps=True)
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return "this torch has no attention for sequences of many lengths"
    from torch.nn.attention.varlen import varlen_attn

    if "window_size" not in inspect.signature(varlen_attn).parameters:
        return "this torch's attention for sequences of many lengths has no windows"
    return Varlen(_of_torch, caps=False)


def _of_torch(query: Tensor, key: Tensor, value: Tensor, paths: Paths, ask: Ask) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(
        query,
        key,
        value,
        *paths.bounds,
        scale=ask.scale,
        window_size=_window(ask),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, Tensor)
    return out


def _of_flash_attn(query: Tensor, key: Tensor, value: Tensor, paths: Paths, ask: Ask) -> Tensor:
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

    return flash_attn_varlen_func(
        query,
        key,
        value,
        *paths.bounds,
        softmax_scale=ask.scale,
        causal=True,
        window_size=_window(ask),
        softcap=ask.softcap or 0.0,
    )


def _window(ask: Ask) -> tuple[int, int]:
    """How many keys before and after its own a query sees; -1 for all before."""
    return (-1 if ask.window is None else ask.window - 1, 0)
