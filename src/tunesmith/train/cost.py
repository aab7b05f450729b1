"""What methods cost on a model, found from shapes alone: what learns, and the memory that training it takes.

model's shapes ─▶ each method with its defaults ─▶ Shape, or why it does not fit
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from tunesmith.core.plugins import build
from tunesmith.core.problem import Problem
from tunesmith.methods import Method
from tunesmith.models.device import choose
from tunesmith.models.load import skeleton
from tunesmith.models.source import find
from tunesmith.optimizers import OptimizerSpec
from tunesmith.train.rehearsal import Place
from tunesmith.train.survey import Shape, survey


@dataclass(frozen=True)
class Cost:
    """What one method takes; `refused` says why it does not work on this model."""

    method: str
    shape: Shape | None
    refused: str = ""


def costs(model: str, methods: Sequence[str], optimizer: str = "adamw", *, tokens: int, row: int) -> list[Cost]:
    """The cost of each method by name, with its default options.

    tokens: those of a micro-batch; row: those of each of its rows.

    Raises:
        Problem: the model cannot be found or built.
    """
    found = find(model)
    place = Place(choose("auto", "float32").device)
    spec = cast(OptimizerSpec, build("optimizer", optimizer))
    out: list[Cost] = []
    for name in methods:
        method = cast(Method, build("method", name)).outline()
        try:
            shape = survey(skeleton(found), method, spec, place=place, tokens=tokens, row=row, checkpointing=False)
            out.append(Cost(name, shape))
        except Problem as problem:
            out.append(Cost(name, None, problem.what))
    return out
