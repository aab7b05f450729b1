"""Classification of texts.

    one label      loss = - w_y log softmax(z)_y
    several        loss = - sum_c [ w_c y_c log sigmoid(z_c) + (1 - y_c) log(1 - sigmoid(z_c)) ]

z are the outputs of a head in place of the language model's, in transformers' own `…ForSequenceClassification`, which
is what is saved and what its pipelines load. With label smoothing e the right label counts (1 - e) and all together
e (Szegedy et al., arXiv:1512.00567).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from tunesmith.core.problem import Problem
from tunesmith.core.records import Labelled, Record
from tunesmith.models.forest import Batch
from tunesmith.models.heads import Kind
from tunesmith.models.policy import Policy
from tunesmith.objectives import Losses
from tunesmith.objectives._labels import Labelling


class Classify(Labelling):
    """Learn to give texts their labels, with a head of their own in place of the language model's."""

    takes: ClassVar[type[Record]] = Labelled
    unit: ClassVar[str] = "texts"
    kind: ClassVar[Kind] = "score"

    per_text: Literal["one", "several"] = "one"
    """How many labels a text has: exactly one, or any number of them, each decided by itself."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each label that is spread over all of them, so that the model stays less sure of itself."""

    @model_validator(mode="after")
    def _smooths_one(self) -> Self:
        if self.several and self.label_smoothing:
            problem = Problem("label_smoothing", "spreads one label over the others, and a text has several", "Set 0")
            raise ValueError(problem) from problem
        return self

    @property
    def several(self) -> bool:
        return self.per_text == "several"

    def count(self, batch: Batch) -> float:
        if self.several:
            return float(batch.answers * len(self.labels))
        scale = self.scale(batch.values)
        return float(batch.answers if scale is None else scale[batch.values.long()].sum())

    def loss(self, policy: Policy, batch: Batch) -> Losses:
        scores = policy.class_scores(batch)
        return self._several(scores, batch) if self.several else self._one(scores, batch)

    def _one(self, scores: Tensor, batch: Batch) -> Losses:
        right, scale = batch.values.long(), self.scale(scores)
        loss = F.cross_entropy(scores, right, scale, reduction="sum", label_smoothing=self.label_smoothing)
        hits = (scores.argmax(dim=-1) == right).float()
        return loss, {"accuracy": (hits if scale is None else hits * scale[right]).sum().detach()}

    def _several(self, scores: Tensor, batch: Batch) -> Losses:
        right = batch.values.reshape(scores.shape)
        loss = F.binary_cross_entropy_with_logits(scores, right, pos_weight=self.scale(scores), reduction="sum")
        hits = ((scores > 0) == (right > 0.5)).float()
        exact = hits.amin(dim=-1).sum() * len(self.labels)
        return loss, {"accuracy": hits.sum().detach(), "exact": exact.detach()}
