"""Reranking: a model that reads a query and a document together and gives one number (a cross-encoder).

    query ──┬── document 1 ─▶ s_1        the query is computed once for all its documents
            ├── document 2 ─▶ s_2
            └── document 3 ─▶ s_3

    listwise    - sum_i g_i / (sum_j g_j) * log softmax(s)_i     over the documents of a query       arXiv:2210.10634
    pairwise    - log sigmoid(s_i - s_j)                         where g_i > g_j       Burges et al., RankNet, 2005
    pointwise   - g_i log sigmoid(s_i) - (1 - g_i) log sigmoid(-s_i)

The two texts are joined as the tokenizer itself joins a pair, so sentence-transformers' CrossEncoder, which loads the
result, gives the same scores. Most tokenizers of decoders put nothing between the two; queries should then end in a
mark, such as a question mark or a line break.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.core.records import Record, Related
from tunesmith.core.run import TrainSpec
from tunesmith.data.encode import Rules
from tunesmith.data.framed import Grades
from tunesmith.data.prepare import MAX_TOKENS
from tunesmith.models.forest import Batch
from tunesmith.models.heads import HeadSpec
from tunesmith.models.policy import Policy
from tunesmith.models.sentences import save_reranker
from tunesmith.objectives import Losses, Objective

NEEDS: dict[str, Grades] = {"listwise": "ranked", "pairwise": "unlike", "pointwise": "shares"}
"""Which grades each form can learn from, in the words of the rules."""


class Rerank(Objective):
    """Learn to score documents for a query, such that the better ones get more."""

    takes: ClassVar[type[Record]] = Related
    unit: ClassVar[str] = "comparisons"

    form: Literal["listwise", "pairwise", "pointwise"] = "listwise"
    """The loss. listwise: find the good documents among all of a query, by their share of its grades; pairwise: put the
    better of two above the other; pointwise: make the score's sigmoid the grade, each document by itself."""

    @property
    def head(self) -> HeadSpec:
        return HeadSpec("score")

    def rules(self, train: TrainSpec) -> Rules:
        return Rules(Related, train.max_tokens or MAX_TOKENS, train.over_long, train.learn, grades=NEEDS[self.form])

    def count(self, batch: Batch) -> float:
        if self.form == "listwise":
            return float(len(batch.sizes))
        return float(len(_better(batch)[0]) if self.form == "pairwise" else batch.answers)

    def loss(self, policy: Policy, batch: Batch) -> Losses:
        scores, grades = policy.scores(batch), batch.values
        better, worse = _better(batch)
        right = (scores.detach()[better] > scores.detach()[worse]).float()
        if self.form == "pairwise":
            return -F.logsigmoid(scores[better] - scores[worse]).sum(), {"accuracy": right.sum()}
        if self.form == "pointwise":
            loss = F.binary_cross_entropy_with_logits(scores, grades, reduction="sum")
            return loss, {"error": (scores.detach().sigmoid() - grades).abs().sum()}
        return _listwise(scores, batch)

    def finish(self, policy: Policy, folder: Path) -> None:
        save_reranker(folder, types=policy.second_type > 0)


def _listwise(scores: Tensor, batch: Batch) -> Losses:
    """The cross-entropy of each query's documents, and how often one of the best graded is scored highest."""
    parts = list(zip(scores.split(batch.sizes), batch.values.split(batch.sizes), strict=True))
    losses = [-(grades / grades.sum() * found.log_softmax(0)).sum() for found, grades in parts]
    first = [(found.detach().argmax() == grades.argmax()).float() for found, grades in parts]
    return torch.stack(losses).sum(), {"accuracy": torch.stack(first).sum()}


def _better(batch: Batch) -> tuple[Tensor, Tensor]:
    """The answers [P] that are graded above others [P] of the same query."""
    sizes = torch.tensor(batch.sizes, device=batch.values.device)
    row = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
    above = (batch.values[:, None] > batch.values[None, :]) & (row[:, None] == row[None, :])
    better, worse = above.nonzero().T
    return better, worse
