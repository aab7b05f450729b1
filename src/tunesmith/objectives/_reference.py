"""What objectives share that compare a policy with a reference: the reward that a policy implies.

    reward(answer) = beta * (log p(answer) - log p_ref(answer))        Rafailov et al., arXiv:2305.18290

The reference is the model with its method switched off, or another model. It is scored live, with each batch, or once
before training; both give the same numbers.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tunesmith.models.forest import Batch, by_row
from tunesmith.models.policy import Policy
from tunesmith.objectives import Objective


class WithReference(Objective):
    """An objective whose loss needs what a reference gives the answers."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    """How strongly the model is held to the reference; small moves further."""
    reference: Literal["live", "precomputed"] = "live"
    """Score the answers with the reference in each step, or once before training. Precomputed needs no method that
    can be switched off, and another model is out of memory again when training begins."""
    reference_model: str | None = None
    """Another model as the reference, by its folder or its id; it must have the same vocabulary. Left out: the model
    itself as it was before training."""

    def prepare(self, policy: Policy, batch: Batch) -> Batch:
        return with_reference(policy, batch)


def with_reference(policy: Policy, batch: Batch) -> Batch:
    """The batch with `reference` [R], the log-probability that the reference gives each answer."""
    if "reference" in batch.extras:
        return batch
    return batch.with_extra("reference", by_row(batch, policy.reference_logprobs(batch)))
