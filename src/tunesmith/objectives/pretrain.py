"""Next-token prediction on plain text:  loss = - sum_t w_t log p(x_t | x_<t).

For pre-training from nothing and for continued pre-training on a domain's text.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from tunesmith.core.records import Record, Text
from tunesmith.models.forest import Batch
from tunesmith.models.policy import Policy
from tunesmith.objectives import Objective, next_token_loss


class Pretrain(Objective):
    """Learn every token of plain text from the ones before it."""

    takes: ClassVar[type[Record]] = Text

    def count(self, batch: Batch) -> float:
        return float(batch.targets.weight.sum())

    def loss(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return next_token_loss(policy, batch), {}
