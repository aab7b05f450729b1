"""Attention over a whole forest at once, on a GPU: flash attention where it computes what is asked, else FlexAttention.

Each is used for what it has passed on (`_proven`); what neither takes is computed segment by segment, as everywhere.
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from tunesmith.models.attention import NAME, Kernel, give_kernels
from tunesmith.models.fast._flex import Flex
from tunesmith.models.fast._proven import Proven
from tunesmith.models.fast._varlen import library

DEVICE = "cuda"


def pull(model: nn.Module) -> int:
    """Give the layers of a model that takes forests its kernels; returns how many layers there are."""
    base = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)
    if base is None or base.device.type != DEVICE or base.config._attn_implementation != NAME:
        return 0
    return give_kernels(base, kernels())


def kernels() -> tuple[Kernel, ...]:
    """Those that are installed, each with the proof that it has to pass."""
    flash = library()
    found: tuple[Kernel, ...] = () if isinstance(flash, str) else (flash,)
    return tuple(Proven(kernel) for kernel in (*found, Flex()))
