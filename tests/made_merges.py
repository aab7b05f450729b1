"""Tensors merged by a method in blocks, without an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tunesmith.core.plugins import find
from tunesmith.merge.methods import Array, Block, MergeMethod, OneEach, Whole


def method_of(name: str, count: int, values: Mapping[str, Any]) -> MergeMethod:
    """A method with values for its options; defaults of those with a value a model are given to all `count`."""
    kind = find("merge", name)
    filled = dict(values)
    for field, about in kind.model_fields.items():
        if any(isinstance(mark, OneEach) for mark in about.metadata) and not about.is_required():
            filled.setdefault(about.alias or field, about.default * count)
    made = kind.model_validate(filled)
    assert isinstance(made, MergeMethod)
    return made


def whole_of(arrays: Sequence[Array], base: Array | None, rows: int, seed: int = 7) -> Whole:
    """A tensor of some models in blocks of so many rows; one of one axis is one block."""
    shape = arrays[0].shape
    rows = rows if len(shape) > 1 else shape[0]

    def drawn(number: int) -> Callable[[int], np.random.Generator]:
        return lambda model: np.random.default_rng([seed, model, number])

    def read(number: int) -> Block:
        part = slice(number * rows, (number + 1) * rows)
        models = tuple(array[part].copy() for array in arrays)
        return Block(None if base is None else base[part].copy(), models, number, drawn(number))

    return Whole(shape, -(-shape[0] // rows), read)


def merge_in_blocks(
    name: str, arrays: Sequence[Array], *, has_base: bool, values: Mapping[str, Any], rows: int = 5, seed: int = 7
) -> Array:
    """The merged tensor; has_base: whether the first array is the base model's."""
    kind = find("merge", name)
    assert issubclass(kind, MergeMethod)
    apart = has_base and kind.base != "none"
    base, models = (arrays[0], arrays[1:]) if apart else (None, arrays)
    method = method_of(name, len(models), values)
    whole = whole_of(models, base, rows, seed)
    known = method.measure(whole)
    return np.concatenate([method.merge(block, known) for block in whole])
