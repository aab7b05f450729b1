"""Regression on texts:  loss = (z - y)^2,  or Huber's: e^2 / 2 for errors e up to d, then d (|e| - d / 2).

z is the one output of a head in transformers' own `…ForSequenceClassification`, which is what is saved. (Huber 1964)
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch.nn.functional as F
from pydantic import Field

from tunesmith.core.records import Labelled, Record
from tunesmith.core.run import TrainSpec
from tunesmith.data.encode import Rules
from tunesmith.models.forest import Batch
from tunesmith.models.heads import HeadSpec
from tunesmith.models.policy import Policy
from tunesmith.objectives import Losses, Objective


class Regress(Objective):
    """Learn a number for each text, such as a rating; its label is that number."""

    takes: ClassVar[type[Record]] = Labelled
    unit: ClassVar[str] = "texts"

    huber: Annotated[float, Field(gt=0)] | None = None
    """Errors beyond this count in proportion, not squared, so that a few far-off numbers pull less; null: never."""

    @property
    def head(self) -> HeadSpec:
        return HeadSpec("score")

    def rules(self, train: TrainSpec) -> Rules:
        usual = super().rules(train)
        return Rules(usual.kind, usual.max_tokens, usual.over_long, number=True)

    def count(self, batch: Batch) -> float:
        return float(batch.answers)

    def loss(self, policy: Policy, batch: Batch) -> Losses:
        found = policy.scores(batch)
        if self.huber is None:
            loss = F.mse_loss(found, batch.values, reduction="sum")
        else:
            loss = F.huber_loss(found, batch.values, delta=self.huber, reduction="sum")
        return loss, {"error": (found - batch.values).abs().sum().detach()}
