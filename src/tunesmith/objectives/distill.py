"""Distillation: a student learns a teacher's whole distribution at every token of the answers.

    loss = sum_t w_t [ hard_weight * - log q(x_t) + (1 - hard_weight) * D(p_t, q_t) ]        p teacher, q student

D is the forward or reverse Kullback-Leibler divergence or the generalised Jensen-Shannon one (`models/divergence.py`;
Hinton et al., arXiv:1503.02531; Agarwal et al., arXiv:2306.13649). The teacher reads the same forest beside the
student; both heads are computed in chunks, only at what is learned.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tunesmith.core.problem import Problem
from tunesmith.core.records import Chat, Record
from tunesmith.models.divergence import Divergence
from tunesmith.models.forest import Batch
from tunesmith.models.policy import Policy
from tunesmith.objectives import Losses, Objective

HALF = 0.5


class Distill(Objective):
    """Learn to answer as another model does, from its probabilities of all tokens."""

    takes: ClassVar[type[Record]] = Chat

    teacher: str
    """The model to learn from, by its folder or its id; it must have the same vocabulary."""
    form: Literal["forward", "reverse", "jsd"] = "forward"
    """What to make small: forward (cover all that the teacher may say), reverse (keep to what it finds likely), or jsd
    (between the two)."""
    beta: Annotated[float, Field(gt=0, lt=1)] | None = None
    """For jsd: near 0 it is like forward, near 1 like reverse. Left out: 0.5."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Above 1, both distributions are flattened, so that what the teacher finds unlikely is learned more exactly."""
    hard_weight: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Weight of the plain loss on the given answers; the divergence gets the rest."""

    @model_validator(mode="after")
    def _beta_has_effect(self) -> Self:
        if self.beta is not None and self.form != "jsd":
            what = f"is {self.beta}, and the form {self.form} has no such term"
            problem = Problem("beta", what, "Leave it out, or set form to jsd")
            raise ValueError(problem) from problem
        return self

    @property
    def other_model(self) -> str:
        return self.teacher

    @property
    def divergence(self) -> Divergence:
        """The divergence that the options name."""
        return Divergence(self.form, HALF if self.beta is None else self.beta, self.temperature)

    def count(self, batch: Batch) -> float:
        return float(batch.targets.weight.sum())

    def loss(self, policy: Policy, batch: Batch) -> Losses:
        found, weight = policy.compared(batch, self.divergence), batch.targets.weight
        soft, hard = (found.divergence * weight).sum(), -(found.logprobs * weight).sum()
        figures = {"divergence": soft, "nll": hard, "agreement": (found.agreement * weight).sum()}
        loss = self.hard_weight * hard + (1 - self.hard_weight) * soft
        return loss, {name: value.detach() for name, value in figures.items()}
