"""LoRA-FA: LoRA whose matrix A stays as it was drawn, so that a layer's input need not be kept.

    W' = W + s B A,   only B [out, r] learns;   the backward pass keeps A x [tokens, r] instead of x [tokens, in]

Zhang et al., arXiv:2308.03303. Saved, loaded and folded as any LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.methods._low_rank import LowRank

FIRST = ("lora_A", "lora_embedding_A")


class LoraFa(LowRank):
    """LoRA with its first matrix frozen: half as many weights learn, and less is kept for the backward pass."""

    start: Literal["zero", "gaussian", "orthogonal"] = "zero"
    """How the frozen matrix is drawn; the change starts at none in any case."""

    def apply(self, model: PreTrainedModel) -> nn.Module:
        return _frozen_first(super().apply(model))

    def adopt(self, model: PreTrainedModel, adapter: Path) -> nn.Module:
        return _frozen_first(super().adopt(model, adapter))

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """The frozen matrices: another machine may draw others from the same seed."""
        return {name: weight for name, weight in model.named_parameters() if _is_first(name)}

    def restore(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self.state(model).items():
                weight.copy_(state[name])

    def _more(self, model: PreTrainedModel) -> dict[str, Any]:
        return {**super()._more(model), "init_lora_weights": True if self.start == "zero" else self.start}


def _is_first(name: str) -> bool:
    return any(f".{part}." in name for part in FIRST)


def _frozen_first(trained: nn.Module) -> nn.Module:
    for name, weight in trained.named_parameters():
        if _is_first(name):
            weight.requires_grad_(False)
    return trained
