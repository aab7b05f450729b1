"""Every merge method by the folder listing: shapes, blocks, one model merged with itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tunesmith.core.plugins import find, names
from tunesmith.merge.methods import Array, Block, MergeMethod, OneEach, Whole

ROWS, COLUMNS = 12, 10
NUMBERS = {"weight": 0.5, "t": 0.3, "density": 0.6, "lambda": 1.0}
"""Values for the options that are required."""


def built(name: str, count: int) -> MergeMethod:
    """A method with values for what it requires, one a model where it takes one a model."""
    kind = find("merge", name)
    values: dict[str, Any] = {}
    for field, about in kind.model_fields.items():
        each = any(isinstance(mark, OneEach) for mark in about.metadata)
        if about.is_required():
            values[about.alias or field] = (NUMBERS[field],) * count if each else NUMBERS[field]
        elif each:
            values[about.alias or field] = about.default * count
    made = kind.model_validate(values)
    assert isinstance(made, MergeMethod)
    return made


def whole(models: list[Array], base: Array | None, size: int) -> Whole:
    """The tensor of some models in blocks of `size` rows."""

    def read(number: int) -> Block:
        rows = slice(number * size, (number + 1) * size)
        return Block(
            None if base is None else base[rows].copy(),
            tuple(model[rows].copy() for model in models),
            number,
            lambda model: np.random.default_rng([7, model, number]),
        )

    return Whole(models[0].shape, -(-ROWS // size), read)


def merged(method: MergeMethod, tensor: Whole) -> Array:
    known = method.measure(tensor)
    return np.concatenate([method.merge(block, known) for block in tensor])


def count_of(kind: type[MergeMethod]) -> int:
    fewest, most = kind.models
    return max(fewest, 2) if most is None else most


@pytest.fixture(params=names("merge"))
def kind(request: pytest.FixtureRequest) -> type[MergeMethod]:
    found = find("merge", request.param)
    assert issubclass(found, MergeMethod)
    return found


def inputs(kind: type[MergeMethod], *, same: bool = False) -> tuple[list[Array], Array | None]:
    draw = np.random.default_rng(0)
    made = [draw.normal(size=(ROWS, COLUMNS)).astype(np.float32) for _ in range(count_of(kind) + 1)]
    if same:
        made = [made[0].copy() for _ in made]
    return made[1:], made[0] if kind.base == "required" else None


def test_result_has_the_blocks_shape_and_type(kind: type[MergeMethod]) -> None:
    models, base = inputs(kind)
    found = merged(built(kind.name(), len(models)), whole(models, base, 5))
    assert found.shape == (ROWS, COLUMNS)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


def test_same_inputs_give_the_same_bits(kind: type[MergeMethod]) -> None:
    models, base = inputs(kind)
    method = built(kind.name(), len(models))
    assert np.array_equal(merged(method, whole(models, base, 5)), merged(method, whole(models, base, 5)))


def test_a_model_merged_with_itself_is_itself(kind: type[MergeMethod]) -> None:
    models, base = inputs(kind, same=True)
    found = merged(built(kind.name(), len(models)), whole(models, base, ROWS))
    np.testing.assert_allclose(found, models[0], rtol=1e-5, atol=1e-6)
