"""Direct preference optimisation (Rafailov et al., arXiv:2305.18290), and the losses that came of it.

    reward(y) = beta * (log p(y) - log p_ref(y)),     lead = reward(chosen) - reward(rejected)

    sigmoid   - (1 - e) log sigmoid(lead) - e log sigmoid(-lead)               e: label_smoothing (conservative DPO)
    robust    (- (1 - e) log sigmoid(lead) + e log sigmoid(-lead)) / (1 - 2e)  Chowdhury et al., arXiv:2403.00409
    hinge     max(0, 1 - lead)                                                 Zhao et al., arXiv:2305.10425
    ipo       (lead / beta - 1 / (2 beta))^2                                   Azar et al., arXiv:2310.12036

With `normalise: length` log-probabilities are means over the tokens of an answer, so that long answers do not weigh
more; ipo is meant so by its authors. `sft_weight` adds - log p(chosen) per token (Pang et al., arXiv:2404.19733), which
keeps the chosen answers from becoming unlikely. The prompt is computed once for both answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from tunesmith.core.problem import Problem
from tunesmith.models.forest import Batch, by_row
from tunesmith.models.policy import Policy
from tunesmith.objectives._pairs import OfPairs, answer_lengths, pair_figures, ranked, sides
from tunesmith.objectives._reference import WithReference
from tunesmith.objectives._trend import unlikelier


class Dpo(WithReference, OfPairs):
    """Learn to prefer the better of two answers, directly from pairs."""

    form: Literal["sigmoid", "robust", "hinge", "ipo"] = "sigmoid"
    """The loss of a pair: sigmoid (DPO), robust (unbiased where label_smoothing is the true share of wrong pairs),
    hinge (a pair that leads by enough is left alone), ipo (drives the lead to one value, so that it cannot grow on)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs that are taken to be the wrong way round, for sigmoid and robust."""
    normalise: Literal["none", "length"] | None = None
    """Take log-probabilities of whole answers (none), or their means over an answer's tokens (length). Left out: length
    for ipo, none for the others."""
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the chosen answer's own likelihood beside the pair; it keeps chosen answers from becoming unlikely."""

    @model_validator(mode="after")
    def _smoothing_has_effect(self) -> Self:
        if self.form in ("hinge", "ipo") and self.label_smoothing:
            what = f"is {self.label_smoothing}, and the form {self.form} has no such term"
            problem = Problem("label_smoothing", what, "Set it to 0, or form to sigmoid or robust")
            raise ValueError(problem) from problem
        if self.form == "robust" and not self.label_smoothing:
            what, hint = "is 0, and then robust is sigmoid", "Set it to the share of wrong pairs, such as 0.1"
            problem = Problem("label_smoothing", what, hint)
            raise ValueError(problem) from problem
        return self

    def loss(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs, lengths = by_row(batch, policy.logprobs(batch)), answer_lengths(batch)
        rewards = self.beta * (logprobs - batch.extras["reference"])
        if (self.normalise or ("length" if self.form == "ipo" else "none")) == "length":
            rewards = rewards / lengths
        chosen, rejected = sides(rewards)
        likely, _ = sides(logprobs / lengths)
        return (self._of(chosen - rejected) - self.sft_weight * likely).sum(), pair_figures(rewards, logprobs)

    def signs(self, steps: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
        return (*super().signs(steps), *unlikelier(steps, "chosen"))

    def _of(self, lead: Tensor) -> Tensor:
        """[P] the loss of pairs with a lead [P]."""
        wrong = self.label_smoothing
        if self.form == "sigmoid":
            return ranked(lead, wrong)
        if self.form == "robust":
            return ((1 - wrong) * ranked(lead) - wrong * ranked(-lead)) / (1 - 2 * wrong)
        if self.form == "hinge":
            return F.relu(1 - lead)
        return (lead / self.beta - 1 / (2 * self.beta)) ** 2
