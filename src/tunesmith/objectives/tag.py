"""Labels of words, as for names or parts of speech:  loss = - sum over words of w_y log softmax(z)_y.

z are the outputs of a head at the last token of each word, in transformers' own `…ForTokenClassification`, which is
what is saved. The last token is where a decoder has read the whole word.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F

from tunesmith.core.records import Record, Tagged
from tunesmith.models.forest import Batch
from tunesmith.models.heads import Kind
from tunesmith.models.policy import Policy
from tunesmith.objectives import Losses
from tunesmith.objectives._labels import Labelling


class Tag(Labelling):
    """Learn a label for each word of a text."""

    takes: ClassVar[type[Record]] = Tagged
    unit: ClassVar[str] = "words"
    kind: ClassVar[Kind] = "tags"

    def count(self, batch: Batch) -> float:
        scale = self.scale(batch.values)
        return float(len(batch.marks) if scale is None else scale[batch.values.long()].sum())

    def loss(self, policy: Policy, batch: Batch) -> Losses:
        scores, right = policy.tag_scores(batch), batch.values.long()
        scale = self.scale(scores)
        loss = F.cross_entropy(scores, right, scale, reduction="sum")
        hits = (scores.argmax(dim=-1) == right).float()
        return loss, {"accuracy": (hits if scale is None else hits * scale[right]).sum().detach()}
