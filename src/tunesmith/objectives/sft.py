"""Supervised fine-tuning:  loss = - sum_t w_t log p(x_t | x_<t)  over the tokens of the answers.

    nll   as it stands; with label smoothing e the right token counts (1 - e) and the mean of all tokens e
          (Szegedy et al., arXiv:1512.00567)
    dft   - sum_t w_t [p(x_t)] log p(x_t),  where [p] is a plain number: its gradient is that of p itself, so tokens
          that the model finds absurd do not pull it about (dynamic fine-tuning, Wu et al., arXiv:2508.05629)

Which tokens are answers comes from the chat template (`train.learn`), their weights from the messages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tunesmith.core.problem import Problem
from tunesmith.core.records import Chat, Record
from tunesmith.models.forest import Batch
from tunesmith.models.policy import Policy
from tunesmith.objectives import Losses, Objective


class Sft(Objective):
    """Learn to give the answers of example chats."""

    takes: ClassVar[type[Record]] = Chat

    form: Literal["nll", "dft"] = "nll"
    """The loss of a token: nll (minus its log-probability), or dft (that times its probability), which learns little
    from tokens that the model finds absurd and is then measured by nll in validation."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each target that is spread over all tokens, so that the model stays less sure of itself; for nll."""

    @model_validator(mode="after")
    def _smoothing_has_effect(self) -> Self:
        if self.form == "dft" and self.label_smoothing:
            what = f"is {self.label_smoothing}, and the form dft has no such term"
            problem = Problem("label_smoothing", what, "Set it to 0, or form to nll")
            raise ValueError(problem) from problem
        return self

    def count(self, batch: Batch) -> float:
        return float(batch.targets.weight.sum())

    def loss(self, policy: Policy, batch: Batch) -> Losses:
        if self.form == "nll":
            return -policy.total(batch, self.label_smoothing), {}
        logprobs, weight = policy.logprobs(batch), batch.targets.weight
        nll = -(logprobs.detach() * weight).sum()
        return -(logprobs.detach().exp() * logprobs * weight).sum(), {"nll": nll}

    def measure(
        self, policy: Policy, batches: Sequence[Batch], loss: Callable[[Batch], Losses]
    ) -> tuple[dict[str, float], float]:
        """With dft the nll takes the loss's place: p log p is small where a model has everything wrong, too."""
        sums, count = super().measure(policy, batches, loss)
        return {**sums, "loss": sums["nll"]} if "nll" in sums else sums, count
