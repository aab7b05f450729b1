"""Full fine-tuning: every weight learns."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from tunesmith.methods import Method, hold_in_float32, save_plain, thaw


class Full(Method):
    """Every weight of the model learns; the most memory, and the base itself changes."""

    def apply(self, model: PreTrainedModel) -> nn.Module:
        thaw(model)
        hold_in_float32(model)
        return model

    def save(self, model: nn.Module, folder: Path) -> None:
        save_plain(model, folder)

    def fold(self, model: nn.Module) -> PreTrainedModel:
        assert isinstance(model, PreTrainedModel)
        return model
