"""Sequence to sequence:  loss = - sum_t w_t log p(y_t | y_<t, x)  over the answers y to prompts x.

For models with an encoder, such as T5 and BART: the encoder reads the prompt, the decoder learns the answer. With label
smoothing e the right token counts (1 - e) and the mean of all tokens e (Szegedy et al., arXiv:1512.00567).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from tunesmith.core.records import Chat, Record
from tunesmith.models.forest import Batch
from tunesmith.models.policy import Policy
from tunesmith.objectives import Objective


class Seq2seq(Objective):
    """Learn the answers to prompts with an encoder-decoder, such as T5 or BART."""

    takes: ClassVar[type[Record]] = Chat
    needs_encoder: ClassVar[bool] = True

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each target that is spread over all tokens, so that the model stays less sure of itself."""

    def count(self, batch: Batch) -> float:
        return float(batch.targets.weight.sum())

    def loss(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return -policy.total(batch, self.label_smoothing), {}
