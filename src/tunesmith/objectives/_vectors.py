"""Losses over the vectors of texts that are compared, as sums for each row.

    row:  a query q beside others o_1 … o_n with grades;   cos(q, o) = q · o, since all vectors have length 1

    contrast  - log exp(cos(q, p) / t) / (exp(cos(q, p) / t) + sum over o exp(cos(q, o) / t))   for each near p;
              o: all others of all rows but those that are near q themselves      van den Oord et al., arXiv:1807.03748
    cosent    log(1 + sum over pairs a graded above b: exp((cos b - cos a) / t))             Huang et al., TASLP, 2024
    cosine    (cos(q, o) - grade)^2
    triplet   max(0, margin - cos(q, p) + cos(q, n))    for each near p and far n of a row     arXiv:1503.03832

`contrast` and `cosent` compare texts of different rows. Which texts are near is a matter of what they say: a text that
stands beside the same query elsewhere as near, or that is the query itself, is not held against it (`Texts.near`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

LOWEST = -1e30
"""Stands for no score at all; finite, so that a sum over nothing has a gradient of zero and not NaN."""


@dataclass(frozen=True)
class Texts:
    """The texts of some rows, one row after the other, the query of each first.

    vectors [T, d] of length 1; grades [T], 0 for queries; sizes [Q]: texts of each row; keys [T]: the same for equal
    texts.
    """

    vectors: Tensor
    grades: Tensor
    sizes: Tensor
    keys: Tensor

    @cached_property
    def row(self) -> Tensor:
        """[O] the row that each other text stands in."""
        rows = torch.arange(len(self.sizes), device=self.sizes.device)
        return torch.repeat_interleave(rows, self.sizes - 1)

    @cached_property
    def asks(self) -> Tensor:
        """[T] whether a text is a query."""
        first = torch.zeros(int(self.sizes.sum()), dtype=torch.bool, device=self.sizes.device)
        first[self.sizes.cumsum(0) - self.sizes] = True
        return first

    @property
    def graded(self) -> Tensor:
        """[O] the grade of each other text."""
        return self.grades[~self.asks]

    @property
    def cosines(self) -> Tensor:
        """[O] the cosine of each other text with its query."""
        return (self.vectors[self.asks][self.row] * self.vectors[~self.asks]).sum(-1)

    def near(self) -> Tensor:
        """[Q, O] whether an other text is the query itself, or near to the same query in any row."""
        kinds, numbers = self.keys.unique(return_inverse=True)
        asked, said = numbers[self.asks], numbers[~self.asks]
        right = self.graded > 0
        known = torch.eye(len(kinds), dtype=torch.bool, device=kinds.device)
        known[asked[self.row[right]], said[right]] = True
        return known[asked][:, said]

    def cut(self, width: int) -> Texts:
        """The same with the first numbers of each vector alone."""
        return replace(self, vectors=F.normalize(self.vectors[:, :width], dim=-1))

    def by_row(self, values: Tensor, row: Tensor | None = None) -> Tensor:
        """[Q] sums of values [O], or of those whose rows are given."""
        rows = self.row if row is None else row
        return values.new_zeros(len(self.sizes)).index_add(0, rows, values)


Sums = tuple[Tensor, dict[str, Tensor]]
"""The loss of each row [Q], and what is told of it [Q]."""
Form = Callable[[Texts], Sums]


def contrast(texts: Texts, temperature: float, both: bool) -> Sums:
    """Each near text told from all that are not near; both: and each query from the others, the mean of the two."""
    cosines = texts.vectors[texts.asks] @ texts.vectors[~texts.asks].T
    against = (cosines / temperature).masked_fill(texts.near(), LOWEST)
    place = torch.nonzero(texts.graded > 0)[:, 0]
    row = texts.row[place]
    found = cosines[row, place]
    loss = F.softplus(against.logsumexp(1)[row] - found / temperature)
    if both:
        loss = (loss + F.softplus(against.logsumexp(0)[place] - found / temperature)) / 2
    hardest = against.amax(1)[row] * temperature
    figures = {"accuracy": (found > hardest).float(), "near": found, "far": hardest.clamp(min=-1)}
    return texts.by_row(loss, row), {name: texts.by_row(value.detach(), row) for name, value in figures.items()}


def cosent(texts: Texts, temperature: float) -> Sums:
    """Pairs in the order of their grades, wherever they stand; the one loss is told of each pair."""
    cosines, grades = texts.cosines, texts.graded
    lead = (cosines[None, :] - cosines[:, None]) / temperature
    wrong = lead[grades[:, None] > grades[None, :]]
    loss = torch.cat([wrong.new_zeros(1), wrong]).logsumexp(0)
    pairs = texts.sizes - 1
    return loss * pairs, {"spearman": _spearman(cosines.detach(), grades) * pairs}


def cosine(texts: Texts) -> Sums:
    """The cosine of each pair as its grade."""
    off = texts.cosines - texts.graded
    return texts.by_row(off**2), {"error": texts.by_row(off.detach().abs())}


def triplet(texts: Texts, margin: float) -> Sums:
    """Each near text of a row nearer to the query than each far one, by a margin."""
    cosines, right = texts.cosines, texts.graded > 0
    near, far = torch.nonzero(right[:, None] & ~right[None, :] & (texts.row[:, None] == texts.row[None, :])).T
    row, lead = texts.row[near], cosines[near] - cosines[far]
    figures = {"accuracy": (lead > 0).float(), "near": cosines[near], "far": cosines[far]}
    loss = texts.by_row(F.relu(margin - lead), row)
    return loss, {name: texts.by_row(value.detach(), row) for name, value in figures.items()}


def at_widths(texts: Texts, form: Form, widths: dict[int, float]) -> Sums:
    """A loss over the whole vectors and over their first numbers, weighted; what is told is of the whole ones."""
    whole = texts.vectors.shape[-1]
    weights = {whole: 1.0, **widths}
    found = {width: form(texts if width == whole else texts.cut(width)) for width in weights}
    return torch.stack([weights[width] * loss for width, (loss, _) in found.items()]).sum(0), found[whole][1]


def _spearman(values: Tensor, grades: Tensor) -> Tensor:
    """The correlation of ranks [], 0 where one side does not vary."""
    ranks = torch.stack([_ranks(values), _ranks(grades)])
    ranks = ranks - ranks.mean(1, keepdim=True)
    return F.cosine_similarity(ranks[0], ranks[1], dim=0)


def _ranks(values: Tensor) -> Tensor:
    """[P] ranks from 0, equal values with the mean of theirs."""
    below = (values[:, None] > values[None, :]).sum(1)
    upto = (values[:, None] >= values[None, :]).sum(1)
    return (below + upto - 1).float() / 2
