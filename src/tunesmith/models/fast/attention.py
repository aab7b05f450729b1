"""Attention over a whole forest: on a GPU at once, on a processor without laying out the keys of shared prompts.

    cuda   flash attention where it computes what is asked, else FlexAttention          cpu   a cascade

Each is used for what it has passed on (`_proven`); what none takes is computed segment by segment, as everywhere.
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from tunesmith.models.attention import NAME, Kernel, give_kernels
from tunesmith.models.fast._cascade import Cascade
from tunesmith.models.fast._flex import Flex
from tunesmith.models.fast._proven import Proven
from tunesmith.models.fast._varlen import library


def pull(model: nn.Module) -> int:
    """Give the layers of a model that takes forests its kernels; returns how many layers there are."""
    base = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)
    if base is None or base.config._attn_implementation != NAME:
        return 0
    found = kernels(base.device.type)
    return give_kernels(base, found) if found else 0


def kernels(kind: str) -> tuple[Kernel, ...]:
    """Those for a kind of device that are installed, each with the proof that it has to pass."""
    flash = library()
    own: tuple[Kernel, ...] = () if isinstance(flash, str) else (flash,)
    found: dict[str, tuple[Kernel, ...]] = {"cuda": (*own, Flex()), "cpu": (Cascade(),)}
    return tuple(Proven(kernel) for kernel in found.get(kind, ()))
