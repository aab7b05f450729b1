"""Supervised fine-tuning:  loss = - sum_t w_t log p(x_t | x_<t)  over the tokens of the answers.

Which tokens are answers comes from the chat template (`train.learn`), their weights from the messages.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from tunesmith.core.records import Chat, Record
from tunesmith.models.forest import Batch
from tunesmith.models.policy import Policy
from tunesmith.objectives import Objective, next_token_loss


class Sft(Objective):
    """Learn to give the answers of example chats."""

    takes: ClassVar[type[Record]] = Chat

    def count(self, batch: Batch) -> float:
        return float(batch.targets.weight.sum())

    def loss(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return next_token_loss(policy, batch), {}
