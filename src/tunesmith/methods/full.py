"""Full fine-tuning: every weight learns."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from tunesmith.methods import Method, hold_in_float32, thaw


class Full(Method):
    """Every weight of the model learns; the most memory, and the base itself changes."""

    def apply(self, model: PreTrainedModel) -> nn.Module:
        thaw(model)
        hold_in_float32(model)
        return model
