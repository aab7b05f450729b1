"""LoRA+: LoRA whose matrix B learns faster than its matrix A.

    lr of B = ratio * lr of A

Hayou, Ghosh & Yu, arXiv:2402.12354. Saved, loaded and folded as any LoRA.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from torch import nn

from tunesmith.methods import trainable
from tunesmith.methods.lora import Lora


class LoraPlus(Lora):
    """LoRA with two learning rates: the second matrix, which starts at zero, takes larger steps than the first."""

    ratio: Annotated[float, Field(ge=1)] = 16.0
    """How many times the optimizer's lr the second matrix learns with; with large ones, set a lower lr."""
    embedding_lr: Annotated[float, Field(gt=0)] = 1e-6
    """The learning rate of embeddings, where these are among the targets."""

    def groups(self, model: nn.Module, lr: float) -> list[dict[str, Any]]:
        rates: dict[float, list[nn.Parameter]] = {}
        for name, weight in trainable(model).items():
            rates.setdefault(self._lr(name, lr), []).append(weight)
        return [{"params": weights, "lr": rate} for rate, weights in rates.items()]

    def _lr(self, name: str, lr: float) -> float:
        if ".lora_embedding_" in name:
            return self.embedding_lr
        return lr * self.ratio if ".lora_B." in name or ".lora_magnitude_vector." in name else lr
