"""Distillation: a student learns a teacher's whole distribution at every token of the answers.

    loss = sum_t w_t [ hard_weight * - log q(x_t) + (1 - hard_weight) * D(p_t, q_t) ]        p teacher, q student

D is the forward or reverse Kullback-Leibler divergence or the generalised Jensen-Shannon one (`models/divergence.py`;
Hinton et al., arXiv:1503.02531; Agarwal et al., arXiv:2306.13649). The teacher reads the same forest beside the
student; both heads are computed in chunks, only at what is learned.

With `on_policy` some rows' last answers are drawn anew from the student in every step, so that it learns what to do
after its own mistakes; of these there is no plain loss. Validation is on the given answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from tunesmith.core.problem import Problem
from tunesmith.core.records import Chat, Record
from tunesmith.core.run import TrainSpec
from tunesmith.data.encode import Rules
from tunesmith.models.divergence import Divergence
from tunesmith.models.forest import Batch, Targets
from tunesmith.models.policy import Policy
from tunesmith.objectives import Losses, Objective, Round
from tunesmith.objectives._online import Drawn
from tunesmith.objectives._rollout import Group, Question, ask_of, column, everywhere, trees

HALF = 0.5
DRAWN = "drawn"


class Distill(Drawn):
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
    on_policy: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the rows whose last answer is drawn from the student in each step, instead of the given one."""

    @model_validator(mode="after")
    def _options_have_effect(self) -> Self:
        if self.beta is not None and self.form != "jsd":
            what = f"is {self.beta}, and the form {self.form} has no such term"
            problem = Problem("beta", what, "Leave it out, or set form to jsd")
            raise ValueError(problem) from problem
        if self.hard_weight and self.on_policy == 1:
            what = f"is {self.hard_weight}, and with on_policy 1 no given answer is learned from"
            problem = Problem("hard_weight", what, "Set it to 0, or on_policy below 1")
            raise ValueError(problem) from problem
        return self

    @property
    def other_model(self) -> str:
        return self.teacher

    @property
    def divergence(self) -> Divergence:
        """The divergence that the options name."""
        return Divergence(self.form, HALF if self.beta is None else self.beta, self.temperature)

    @property
    def sampled(self) -> int:
        return self.sampling.max_tokens if self.on_policy else 0

    def rules(self, train: TrainSpec) -> Rules:
        return replace(super().rules(train), asked=self.on_policy > 0)

    def count(self, batch: Batch) -> float:
        return float(batch.targets.weight.sum())

    def round(self, policy: Policy, batches: Sequence[Batch], seed: int) -> Round:
        if not self.on_policy:
            return super().round(policy, batches, seed)
        common = int(policy.ranks.gather(torch.tensor([seed]))[0])
        anew = [[bool(note) and self._draws(common, row) for row, note in _rows(batch)] for batch in batches]
        found = [
            _question(policy, *row)
            for batch, flags in zip(batches, anew, strict=True)
            for row, flag in zip(_rows(batch), flags, strict=True)
            if flag
        ]
        groups = [group.having(drawn=[1.0]) for group in self.answered(policy, found, 1, seed)]
        kept = [_without(batch, flags) for batch, flags in zip(batches, anew, strict=True)]
        made = [*(batch for batch in kept if len(batch.targets)), *trees(groups, policy)]
        return Round([made], _figures(policy, groups))

    def loss(self, policy: Policy, batch: Batch) -> Losses:
        share = 0.0 if DRAWN in batch.extras else self.hard_weight
        found = policy.compared(batch, self.divergence, likelihood=share > 0)
        weight = batch.targets.weight
        soft, hard = (found.divergence * weight).sum(), -(found.logprobs * weight).sum()
        figures = {"divergence": soft, "agreement": (found.agreement * weight).sum()}
        if not self.on_policy:
            figures["nll"] = hard
        return share * hard + (1 - share) * soft, {name: value.detach() for name, value in figures.items()}

    def measure(
        self, policy: Policy, batches: Sequence[Batch], loss: Callable[[Batch], Losses]
    ) -> tuple[dict[str, float], float]:
        """On the given answers, which are the same in every measurement."""
        return Objective.measure(self.model_copy(update={"on_policy": 0.0}), policy, batches, loss)

    def _draws(self, seed: int, row: int) -> bool:
        """Whether a row's answer is drawn in a step, however rows were dealt over ranks."""
        draw = torch.rand((), generator=torch.Generator().manual_seed((seed + row) % (1 << 63)))
        return bool(draw < self.on_policy)


def _rows(batch: Batch) -> list[tuple[int, str]]:
    """The number and the note of each row of a batch."""
    return list(zip(batch.rows, batch.notes, strict=True))


def _question(policy: Policy, row: int, note: str) -> Question:
    """What stands before a row's last answer."""
    ask = ask_of(note)
    ids = policy.codec.encode_chat(ask.messages, ask.tools, add_generation_prompt=True)
    return Question(np.array(ids, np.int32), ask, "", row, note)


def _without(batch: Batch, dropped: Sequence[bool]) -> Batch:
    """The batch without the targets of some rows."""
    of_answers = torch.tensor(dropped).repeat_interleave(torch.tensor(batch.sizes))
    found, keep = batch.targets, ~of_answers.to(batch.tokens.device)[batch.targets.row]
    parts = (found.source, found.token, found.row, found.weight)
    return replace(batch, targets=Targets(*(part[keep] for part in parts)))


def _figures(policy: Policy, groups: Sequence[Group]) -> dict[str, float]:
    """Of the answers that all ranks drew; nothing where they drew none."""
    names = ("length", "cut", "empty")
    means = everywhere(torch.stack([column(groups, name) for name in names], dim=1), policy.ranks)
    return dict(zip(names, means.mean(dim=0).tolist(), strict=True)) if len(means) else {}
