"""Full fine-tuning: every weight learns."""

from __future__ import annotations

from typing import ClassVar

from torch import nn
from transformers import PreTrainedModel

from tunesmith.methods import Method, hold_in_float32, thaw


class Full(Method):
    """Every weight of the model learns; the most memory, and the base itself changes."""

    usual_lr: ClassVar[float] = 5e-5

    def apply(self, model: PreTrainedModel) -> nn.Module:
        thaw(model)
        hold_in_float32(model)
        return model
