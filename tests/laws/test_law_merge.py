"""What every merge must give: a model merged with itself is itself, and weight 1 among zeros is that model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import model, read, recipe, tensors

from tunesmith.core.plugins import find, names
from tunesmith.merge.choices import options_of
from tunesmith.merge.methods import MergeMethod
from tunesmith.merge.verb import How, merge

FILES = How(proof="files")
NUMBERS = {"weight": 1.0, "t": 0.3}
"""Values for options that are required."""


def asked(kind: type[MergeMethod], where: Path, *, same: bool) -> dict[str, Any]:
    """A recipe for a method over as many models as it takes, with density below 1 only where the models differ."""
    fewest, most = kind.models
    count = max(fewest, 2) if most is None else most
    held = tensors(0, dtype=torch.bfloat16)
    folders = [f"m{number}" for number in range(count + 1)]
    for number, name in enumerate(folders):
        model(where / name, held if same else tensors(number, dtype=torch.bfloat16))
    apart = kind.base != "none"
    listed = folders if apart else folders[:count]
    needed = {option.name: NUMBERS[option.name] for option in options_of(kind) if option.required}
    value: dict[str, Any] = {"merge_method": kind.name(), "models": [{"model": name} for name in listed]}
    return value | ({"base_model": "m0"} if apart else {}) | ({"parameters": needed} if needed else {})


@pytest.mark.parametrize("method", names("merge"))
def test_a_model_merged_with_itself_is_itself_bit_for_bit(method: str, tmp_path: Path) -> None:
    kind = find("merge", method)
    assert issubclass(kind, MergeMethod)
    file = recipe(tmp_path, asked(kind, tmp_path, same=True))
    found = read(merge(file, tmp_path / "out", FILES).folder)
    own = read(tmp_path / "m0")
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], own[name]) for name in own)


def one_of(where: Path, method: str, values: list[dict[str, float]], **more: Any) -> dict[str, torch.Tensor]:
    shutil.rmtree(where / "out", ignore_errors=True)
    listed = [{"model": f"m{number}", "parameters": value} for number, value in enumerate(values, start=1)]
    file = recipe(where, {"merge_method": method, "models": listed, **more})
    return read(merge(file, where / "out", FILES).folder)


@pytest.mark.parametrize("first", [1, 2])
def test_weight_one_among_zeros_is_that_model(first: int, tmp_path: Path) -> None:
    for number in range(3):
        model(tmp_path / f"m{number}", tensors(number, dtype=torch.bfloat16))
    values = [{"weight": float(number == first)} for number in (1, 2)]
    wanted = read(tmp_path / f"m{first}")
    for method in ("linear", "nuslerp"):
        found = one_of(tmp_path, method, values)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted), method
    found = one_of(tmp_path, "task_arithmetic", values, base_model="m0", dtype="float64", out_dtype="bfloat16")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_ends_of_an_arc_are_the_two_models(tmp_path: Path) -> None:
    for number in range(2):
        model(tmp_path / f"m{number}", tensors(number, dtype=torch.bfloat16))
    for t in (0, 1):
        value = {"merge_method": "slerp", "base_model": "m0", "models": [{"model": "m0"}, {"model": "m1"}]}
        folder = merge(recipe(tmp_path, {**value, "parameters": {"t": t}}), tmp_path / f"out{t}", FILES).folder
        wanted = read(tmp_path / f"m{t}")
        assert all(torch.equal(found, wanted[name]) for name, found in read(folder).items())
