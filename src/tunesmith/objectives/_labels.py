"""What objectives share whose rows have labels: which labels there are, and how much each counts.

rows ─▶ how often each label occurs ─▶ labels in order, a weight each ─▶ the resolved run, the head

A label that is learned `inverse` to how often it occurs weighs n / (C n_c): n labels in all, n_c of them c, C kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from tunesmith.core.problem import Problem
from tunesmith.core.run import TrainSpec
from tunesmith.data.encode import Rules
from tunesmith.models.heads import HeadSpec, Kind
from tunesmith.objectives import Objective

SHOWN = 12
"""So many labels are named to a person."""

Weight = Annotated[float, Field(gt=0)]


class Labelling(Objective):
    """An objective over rows with labels."""

    kind: ClassVar[Kind]
    """The kind of head that it needs."""

    labels: tuple[str, ...] = ()
    """The labels, in the order of the head's outputs; by default those of the training rows, by name or by value."""
    weights: Literal["even", "inverse"] | tuple[Weight, ...] = "even"
    """How much each label counts: `even`, `inverse` to how often it occurs in the rows, or a number for each."""

    @field_validator("labels", mode="before")
    @classmethod
    def _written(cls, value: Any) -> Any:
        """YAML reads labels such as 1 or true as numbers and truth values."""
        if not isinstance(value, (list, tuple)):
            return value
        texts = (str(label).lower() if isinstance(label, bool) else label for label in value)
        return tuple(str(label) if isinstance(label, (int, float)) else label for label in texts)

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
        faults = {
            f"labels has {', '.join(twice)} twice": bool(twice),
            "labels has one, and at least two can be told apart": len(self.labels) == 1 and not self.several,
            f"weights has {len(self.weights)} numbers for {len(self.labels)} labels": isinstance(self.weights, tuple)
            and len(self.weights) != len(self.labels),
        }
        for fault, found in faults.items():
            if found:
                problem = Problem("", fault, "Name each label once, and give each a weight or none")
                raise ValueError(problem) from problem
        return self

    @property
    def several(self) -> bool:
        """Whether a text may have any number of labels."""
        return False

    @property
    def head(self) -> HeadSpec:
        return HeadSpec(self.kind, self.labels, self.several)

    def rules(self, train: TrainSpec) -> Rules:
        usual = super().rules(train)
        return Rules(usual.kind, usual.max_tokens, usual.over_long, labels=self.labels, several=self.several)

    def resolved(self, base: HeadSpec, counts: Callable[[], Mapping[str, int]]) -> tuple[Self, tuple[str, ...]]:
        found = counts() if not self.labels or self.weights == "inverse" else {}
        labels, why = self._chosen(base, found)
        told = [why] if why else []
        weights = self.weights
        if weights == "inverse":
            weights = inverse(labels, found)
            shown = ", ".join(f"{label} {weight:.3g}" for label, weight in zip(labels, weights, strict=True))
            told.append(f"weights inverse to how often labels occur: {shown}")
        return self.model_copy(update={"labels": labels, "weights": weights}), tuple(told)

    def scale(self, like: Tensor) -> Tensor | None:
        """[C] how much each label counts, None where all count the same."""
        if not isinstance(self.weights, tuple):
            return None
        return torch.tensor(self.weights, dtype=torch.float32, device=like.device)

    def _chosen(self, base: HeadSpec, found: Mapping[str, int]) -> tuple[tuple[str, ...], str]:
        """The labels, and a sentence where they were found.

        Raises:
            Problem: the head that the base has is for others.
        """
        place = f"objective.{self.name()}.labels"
        there = base.labels if base.kind == self.kind and not _numbered(base.labels) else ()
        labels = self.labels or tuple(found)
        if there and not set(labels) <= set(there):
            what = f"the model has a head for the labels {shown(there)}, and these are {shown(labels)}"
            raise Problem(place, what, "Start from a model without that head, or give rows with its labels")
        if there and self.labels and self.labels != there:
            raise Problem(place, f"the model's head has them in the order {shown(there)}", "Leave labels out")
        if self.labels:
            return self.labels, ""
        if there:
            return there, f"labels, as the model has them: {shown(there)}"
        return labels, f"{len(labels)} labels, found in the rows: {shown(labels)}"


def inverse(labels: Sequence[str], counts: Mapping[str, int]) -> tuple[float, ...]:
    """n / (C n_c) for each label; one that never occurs counts as if it occurred once."""
    total = sum(counts.values())
    return tuple(total / (len(labels) * max(1, counts.get(label, 0))) for label in labels)


def shown(labels: Sequence[str]) -> str:
    """The first labels, for a person."""
    return ", ".join(labels[:SHOWN]) + (" …" if len(labels) > SHOWN else "")


def _numbered(labels: Sequence[str]) -> bool:
    """Whether labels are transformers' own, which stand for none."""
    return all(label == f"LABEL_{number}" for number, label in enumerate(labels))
