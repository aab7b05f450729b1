"""Direct preference optimisation (Rafailov et al., arXiv:2305.18290).

    loss = - log sigmoid(beta * [(log p(chosen) - log p_ref(chosen)) - (log p(rejected) - log p_ref(rejected))])

The prompt is computed once for both answers. The reference is the model with the method switched off, scored live
with each batch or once before training (`precomputed`); both give the same numbers.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tunesmith.core.records import Preference, Record
from tunesmith.models.forest import Batch, by_row
from tunesmith.models.policy import Policy
from tunesmith.objectives import Objective


class Dpo(Objective):
    """Learn to prefer the better of two answers, directly from pairs."""

    takes: ClassVar[type[Record]] = Preference
    unit: ClassVar[str] = "pairs"

    beta: Annotated[float, Field(gt=0)] = 0.1
    """How strongly the model is held to the reference; small moves further."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs that are taken to be the wrong way round (conservative DPO)."""
    reference: Literal["live", "precomputed"] = "live"
    """Score the pairs with the untouched model in each step, or once before training (then it needs no method that
    can be switched off)."""

    def prepare(self, policy: Policy, batch: Batch) -> Batch:
        return with_reference(policy, batch)

    def count(self, batch: Batch) -> float:
        return batch.answers / 2

    def loss(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        gained = self.beta * (by_row(batch, policy.logprobs(batch)) - batch.extras["reference"])
        chosen, rejected = gained[0::2], gained[1::2]
        lead = chosen - rejected
        right, wrong = -F.logsigmoid(lead), -F.logsigmoid(-lead)
        loss = ((1 - self.label_smoothing) * right + self.label_smoothing * wrong).sum()
        figures = {"accuracy": (lead > 0).float().sum(), "chosen": chosen.sum(), "rejected": rejected.sum()}
        return loss, {name: value.detach() for name, value in figures.items()}


def with_reference(policy: Policy, batch: Batch) -> Batch:
    """The batch with `reference` [R], the log-probability of each answer under the untouched model."""
    if "reference" in batch.extras:
        return batch
    return batch.with_extra("reference", by_row(batch, policy.reference_logprobs(batch)))
