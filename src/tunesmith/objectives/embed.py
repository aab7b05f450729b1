"""Embeddings: texts as vectors, near where they mean the same (Sentence-BERT, Reimers and Gurevych, arXiv:1908.10084).

    texts ─▶ model without a head ─▶ pooling ─▶ vectors of length 1 ─▶ cosines ─▶ loss (formulas in `_vectors.py`)

`contrast` and `cosent` compare all texts of a step, whatever micro-batch or process they are in, in two passes
(GradCache, Gao et al., arXiv:2101.06983):

    round    v_i for all texts, no gradient;   L(v_1 …);   s_i = dL / dv_i
    loss     v_i again, micro-batch by micro-batch:  the sum of s_i · v_i has the gradient of L

Both passes draw the same dropout, so the gradient is exact with it, too. A step of one micro-batch needs no first pass.
A validation compares all its rows with each other. With `dimensions` the first numbers of a vector are vectors of their
own (Matryoshka, Kusupati et al., arXiv:2205.13147). The result has the layout of sentence-transformers, which
loads models and adapters that change layers, such as LoRA; soft prompts and tunesmith's own methods it does not know.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from tunesmith.core.problem import Problem
from tunesmith.core.records import Record, Related
from tunesmith.core.run import TrainSpec
from tunesmith.data.encode import Rules
from tunesmith.data.framed import Grades
from tunesmith.data.prepare import MAX_TOKENS
from tunesmith.models.forest import Batch
from tunesmith.models.heads import HeadSpec
from tunesmith.models.policy import Policy
from tunesmith.models.pooling import Pooling
from tunesmith.models.sentences import save_embedder
from tunesmith.objectives import Losses, Objective, Round
from tunesmith.objectives._vectors import Form, Sums, Texts, at_widths, contrast, cosent, cosine, triplet

OF_A_STEP = ("contrast", "cosent")
"""Forms that compare texts of different rows."""
NEEDS: dict[str, Grades] = {"contrast": "near", "triplet": "near and far", "cosine": "cosines", "cosent": "any"}
"""Which grades each form can learn from, in the words of the rules."""
TOLD = "told."
"""What the names of this batch's shares of the loss and of the figures begin with."""


class Embed(Objective):
    """Learn vectors for texts, such that texts that belong together are near each other."""

    takes: ClassVar[type[Record]] = Related
    unit: ClassVar[str] = "pairs"

    form: Literal["contrast", "cosent", "cosine", "triplet"] = "contrast"
    """The loss. contrast: tell the near text from all other texts of the step, the far ones of its row among them;
    cosent: bring scored pairs into the order of their grades; cosine: make the cosine of a pair its grade; triplet: the
    near text nearer than the far one by a margin."""
    pooling: Pooling | None = None
    """Where a text's vector is read: the mean over its tokens, its last token, or its first (cls, for encoders). Left
    out: as the model's own files say, else mean."""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """Of contrast and cosent: cosines are divided by it; small cares most for the hardest texts. Libraries that have a
    scale instead mean 1 / temperature."""
    direction: Literal["forth", "both"] = "forth"
    """Of contrast: find the near text of a query only (forth), or the query of a near text as well (both)."""
    margin: Annotated[float, Field(gt=0)] = 0.2
    """Of triplet: by how much the cosine of the near text should lead."""
    dimensions: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """Learn the first so many numbers of a vector as a vector, too, such as [256, 128, 64] (Matryoshka)."""
    weights: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """How much each of the `dimensions` counts; by default 1, as the whole vector does where it is not among them."""

    @field_validator("dimensions", "weights", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problem = None
        if len(set(self.dimensions)) < len(self.dimensions):
            problem = Problem("dimensions", f"{list(self.dimensions)} names one twice", "Name each once")
        if self.weights and len(self.weights) != len(self.dimensions):
            what = f"has {len(self.weights)} numbers, and dimensions {len(self.dimensions)}"
            problem = Problem("weights", what, "Give one for each of the dimensions, or none")
        for option, forms in {"temperature": OF_A_STEP, "direction": ("contrast",), "margin": ("triplet",)}.items():
            value = getattr(self, option)
            if value != type(self).model_fields[option].default and self.form not in forms:
                what = f"is {value}, and the form {self.form} has none"
                problem = Problem(option, what, f"Take it out, or set form to {' or '.join(forms)}")
        if problem is not None:
            raise ValueError(problem) from problem
        return self

    @property
    def head(self) -> HeadSpec:
        return HeadSpec("states", pooling=self.pooling)

    def resolved(self, base: HeadSpec, counts: Callable[[], Mapping[str, int]]) -> tuple[Self, tuple[str, ...]]:
        if self.pooling is not None:
            return self, ()
        if base.pooling == "other":
            what = "is left out, and the model's own files make vectors in a way that is not known here"
            raise Problem("objective.embed.pooling", what, "Set it to mean, last or cls to make them anew")
        why = "as the model's own files say" if base.pooling else "since the model's files say nothing of it"
        pooling = base.pooling or "mean"
        return self.model_copy(update={"pooling": pooling}), (f"pooling {pooling}: {why}",)

    def rules(self, train: TrainSpec) -> Rules:
        longest = train.max_tokens or MAX_TOKENS
        return Rules(Related, longest, train.over_long, train.learn, apart=True, grades=NEEDS[self.form])

    def equip(self, policy: Policy) -> None:
        width = policy.model.config.get_text_config().hidden_size
        if wide := [size for size in self.dimensions if size > width]:
            what = f"{wide[0]} is more than the vectors of this model have"
            raise Problem("objective.embed.dimensions", what, f"Use {width} or less")

    def round(self, policy: Policy, batches: Sequence[Batch], seed: int) -> Round:
        if self.form not in OF_A_STEP or policy.ranks.total(len(batches)) < 2:
            return super().round(policy, batches, seed)
        drawn = [batch.with_extra("draw", torch.tensor((seed + n) % 2**63)) for n, batch in enumerate(batches)]
        with torch.no_grad():
            own = [_texts(batch, self._vectors(policy, batch)) for batch in drawn]
        return Round([self._shared(drawn, *self._slopes(policy, own))])

    def count(self, batch: Batch) -> float:
        if self.form in ("cosent", "cosine"):
            return float(batch.answers - len(batch.sizes))
        near = torch.stack([(grades > 0).sum() for grades in batch.values.split(batch.sizes)])
        if self.form == "triplet":
            near = near * (torch.tensor(batch.sizes, device=near.device) - 1 - near)
        return float(near.sum())

    def loss(self, policy: Policy, batch: Batch) -> Losses:
        vectors = self._vectors(policy, batch)
        if "slope" not in batch.extras:
            loss, figures = self._of(_texts(batch, vectors))
            return loss.sum(), {name: value.sum().float() for name, value in figures.items()}
        along = (vectors * batch.extras["slope"]).sum()
        told = {name[len(TOLD) :]: value for name, value in batch.extras.items() if name.startswith(TOLD)}
        return told.pop("loss") + along - along.detach(), told

    def finish(self, policy: Policy, folder: Path) -> None:
        save_embedder(folder, self.pooling or "mean", policy.model.config.get_text_config().hidden_size)

    def _vectors(self, policy: Policy, batch: Batch) -> Tensor:
        """[T, d] the vectors of a batch; where it is embedded twice, both times with the same dropout."""
        if "draw" in batch.extras:
            torch.manual_seed(int(batch.extras["draw"]))
        return policy.embeddings(batch, self.pooling or "mean")

    def _of(self, texts: Texts) -> Sums:
        forms: dict[str, Form] = {
            "contrast": partial(contrast, temperature=self.temperature, both=self.direction == "both"),
            "cosent": partial(cosent, temperature=self.temperature),
            "cosine": cosine,
            "triplet": partial(triplet, margin=self.margin),
        }
        weights = self.weights or (1.0,) * len(self.dimensions)
        return at_widths(texts, forms[self.form], dict(zip(self.dimensions, weights, strict=True)))

    def _slopes(self, policy: Policy, own: Sequence[Texts]) -> tuple[Tensor, dict[str, Tensor]]:
        """The slopes of the loss of a whole step by this rank's vectors [T, d], and the shares of its rows [Q]."""
        ranks = policy.ranks
        parts = {name: ranks.gather(_joined(own, name)) for name in ("vectors", "grades", "sizes", "keys")}
        everyone = Texts(**{name: torch.cat(found) for name, found in parts.items()})
        with torch.enable_grad():
            everyone.vectors.requires_grad_()
            loss, figures = self._of(everyone)
            (slopes,) = torch.autograd.grad(loss.sum(), everyone.vectors)
        texts, rows = ([len(part) for part in parts[name]] for name in ("vectors", "sizes"))
        shares = {name: value.detach().split(rows)[ranks.rank] for name, value in {"loss": loss, **figures}.items()}
        return slopes.split(texts)[ranks.rank], shares

    def _shared(self, batches: Sequence[Batch], slopes: Tensor, shares: dict[str, Tensor]) -> list[Batch]:
        """Each batch with the slopes of its texts and its share of the loss and the figures."""
        texts, rows = [batch.answers for batch in batches], [len(batch.sizes) for batch in batches]
        out = [b.with_extra("slope", slope) for b, slope in zip(batches, slopes.split(texts), strict=True)]
        for name, values in shares.items():
            parts = [part.sum().float() for part in values.split(rows)]
            out = [b.with_extra(TOLD + name, part) for b, part in zip(out, parts, strict=True)]
        return out


def _texts(batch: Batch, vectors: Tensor) -> Texts:
    sizes = torch.tensor(batch.sizes, device=vectors.device)
    return Texts(vectors, batch.values, sizes, torch.tensor([_key(batch, leaf) for leaf in batch.leaves]).to(sizes))


def _key(batch: Batch, leaf: int) -> int:
    """A number that equal texts have in common, from the hash of their tokens."""
    digest = hashlib.blake2b(batch.path(leaf).cpu().numpy().tobytes(), digest_size=7)
    return int.from_bytes(digest.digest())


def _joined(texts: Sequence[Texts], name: str) -> Tensor:
    """One part of all texts of this rank; nothing where it has none."""
    found = [getattr(part, name) for part in texts]
    return (
        torch.cat(found)
        if found
        else torch.zeros(0, dtype=torch.float32 if name in ("vectors", "grades") else torch.long)
    )
