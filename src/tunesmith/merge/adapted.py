# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
"""A model with an adapter on it, as plain weights, row by row:  W[a:b] + s B[a:b] A  (DoRA: then scaled by row).

An adapter on the head of a model whose head is tied to its embedding changes the head alone, so it unties them; so does
one on the embedding.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.core.problem import Problem
from tunesmith.merge.lowrank import Change, read_adapter
from tunesmith.merge.methods import Array
from tunesmith.models.source import read_json

if TYPE_CHECKING:
    from tunesmith.merge.inputs import Model

HEAD = "lm_head.weight"


class Adaption:
    """What an adapter adds to the rows of a model's tensors."""

    def __init__(self, folder: Path, model: Model) -> None:
        """Read an adapter and check that every change has its weight.

        Raises:
            Problem: the adapter needs more than low-rank factors, or belongs to another model.
        """
        self.folder = folder
        adapter = read_adapter(folder)
        if adapter is None or read_json(folder / "adapter_config.json").get("ensure_weight_tying"):
            raise Problem(
                str(folder),
                "is an adapter that is not a plain LoRA or DoRA, so it cannot be added row by row",
                "Fold it first (tunesmith fold) and name the folded model in the recipe",
            )
        self.changes = dict(adapter.changes)
        touched = {HEAD, model.embedding} & set(self.changes)
        self.untied = (HEAD,) if touched and model.tied else ()
        self._check(model)

    def apply(self, name: str, rows: Array, first: int, end: int) -> Array:
        """Rows first to end of a tensor with their change."""
        change = self.changes.get(name)
        cut = slice(first, end) if rows.ndim > 1 else slice(None)
        return rows if change is None else _applied(_cut(change, cut), rows)

    def pick(self, name: str, rows: Array, ids: NDArray[np.intp]) -> Array:
        """Single rows of a tensor with their change."""
        change = self.changes.get(name)
        return rows if change is None else _applied(_cut(change, torch.from_numpy(ids)), rows)

    def _check(self, model: Model) -> None:
        known = {*model.weights.tensors, *self.untied}
        if lost := sorted(set(self.changes) - known):
            raise Problem(
                str(self.folder),
                f"changes {len(lost)} weights that {model.name.path} does not have ({', '.join(lost[:3])})",
                "The adapter belongs to another model, or its names are not those of the files: tunesmith fold",
            )
        for name, change in self.changes.items():
            tensor = model.tensor(name)
            if tensor is not None and (shape := _shape(change)) != tensor.shape:
                raise Problem(str(self.folder), f"changes {name} as {shape}, and it is {tensor.shape}", "")
            if change.transposed and change.magnitude is not None:
                raise Problem(
                    str(self.folder), "is DoRA over transposed weights, which needs them whole", "Fold it first"
                )


def _shape(change: Change) -> tuple[int, ...]:
    if change.value is not None:
        return tuple(change.value.shape)
    assert change.up is not None and change.down is not None
    shape = (change.up.shape[0], change.down.shape[1])
    return shape[::-1] if change.transposed else shape


def _cut(change: Change, rows: Any) -> Change:
    """The change of some rows alone."""
    if change.value is not None:
        return replace(change, value=change.value[rows])
    assert change.up is not None and change.down is not None
    if change.transposed:
        return replace(change, down=change.down[:, rows])
    magnitude = None if change.magnitude is None else change.magnitude.flatten()[rows]
    return replace(change, up=change.up[rows], magnitude=magnitude)


def _applied(change: Change, rows: Array) -> Array:
    changed = change.apply(torch.from_numpy(rows)).contiguous().numpy()
    return changed.astype(rows.dtype, copy=False).reshape(rows.shape)
