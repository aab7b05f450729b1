"""What merge methods draw, against mergekit 0.1.5: as much is kept, of the same elements, with the same moments.

Both draw from their own generators, so numbers are compared with the spread that chance gives them (five standard
deviations); seeds are fixed, so a test passes always or never.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from made_merges import merge_in_blocks
from mergekit_oracle import ask
from safetensors.torch import load_file, save_file

from tunesmith.merge.methods import Array

SHAPE = (400, 500)
SIGMAS = 5

ONE: dict[str, dict[str, Any]] = {
    "dare_linear": {"density": [0.3], "rescale": False},
    "dare_ties": {"density": [0.6], "rescale": False},
    "della_linear": {"density": [0.4], "epsilon": [0.2], "rescale": False},
    "della": {"density": [0.7], "epsilon": [0.1], "rescale": False},
}
"""One model, so that what is kept shows."""
TWO: dict[str, dict[str, Any]] = {
    name: {"weight": [0.6, 0.7], "density": [0.5, 0.3]}
    for name in ("dare_linear", "dare_ties", "della_linear", "della")
}
"""Two models with the defaults otherwise."""


def inputs() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    base = torch.randn(SHAPE, generator=draw, dtype=torch.float64) * 0.02
    deltas = [torch.randn(SHAPE, generator=draw, dtype=torch.float64) * 0.01 for _ in range(2)]
    return {"base": base, "0": base + deltas[0], "1": base + deltas[1]}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("random")
    save_file(inputs(), folder / "inputs.safetensors")
    cases = [
        {
            "name": f"{name}/{len(models)}",
            "method": name,
            "parameters": {"weight": [1.0], **values},
            "tensors": ["base", *models],
            "base": 0,
            "dtype": "float64",
        }
        for table, models in ((ONE, ["0"]), (TWO, ["0", "1"]))
        for name, values in table.items()
    ]
    (folder / "cases.json").write_text(json.dumps(cases))
    ask(folder)
    return load_file(folder / "outputs.safetensors")


def ours(name: str, models: Sequence[str], values: dict[str, Any], seed: int = 7) -> Array:
    """What the method adds to the base."""
    arrays = [inputs()[each].numpy() for each in ("base", *models)]
    parameters = {"weight": [1.0], **values}
    return merge_in_blocks(name, arrays, has_base=True, values=parameters, rows=32, seed=seed) - arrays[0]


def close(left: Array, right: Array) -> bool:
    """Whether two samples of one distribution have means as near as chance leaves them."""
    spread = np.sqrt(left.var() / left.size + right.var() / right.size)
    return abs(left.mean() - right.mean()) <= SIGMAS * spread


def by_rank(values: Array, delta: Array) -> Array:
    """Values with each row in the order of the magnitudes of its changes, in ten parts [10, values]."""
    ordered = np.take_along_axis(values, np.argsort(np.abs(delta), axis=1), axis=1)
    return np.moveaxis(ordered.reshape(len(ordered), 10, -1), 1, 0).reshape(10, -1)


@pytest.mark.parametrize("name", ONE)
def test_as_much_is_kept_of_each_rank(name: str, theirs: dict[str, torch.Tensor]) -> None:
    base, delta = inputs()["base"].numpy(), (inputs()["0"] - inputs()["base"]).numpy()
    found, wanted = ours(name, ["0"], ONE[name]), theirs[f"{name}/1"].numpy() - base
    for part in (found, wanted):
        kept = part != 0
        np.testing.assert_allclose(part[kept], delta[kept], rtol=1e-6)  # mergekit thins in float32, whatever is asked
    assert close((found != 0).astype(float), (wanted != 0).astype(float))
    for left, right in zip(by_rank(found != 0, delta), by_rank(wanted != 0, delta), strict=True):
        assert close(left.astype(float), right.astype(float))


@pytest.mark.parametrize("name", ONE)
def test_the_share_is_what_the_options_say(name: str) -> None:
    delta = (inputs()["0"] - inputs()["base"]).numpy()
    found = ours(name, ["0"], ONE[name]) != 0
    density, epsilon = ONE[name]["density"][0], ONE[name].get("epsilon", [0.0])[0]
    for place, part in enumerate(by_rank(found, delta)):
        chance = density + epsilon * (2 * (place + 0.5) / 10 - 1)
        assert abs(part.mean() - chance) <= SIGMAS * np.sqrt(chance * (1 - chance) / part.size)
    neighbours = np.corrcoef(found[:, 1:].ravel(), found[:, :-1].ravel())[0, 1]
    assert abs(neighbours) <= SIGMAS / np.sqrt(found.size) + epsilon  # rows and columns are drawn independently


@pytest.mark.parametrize("name", TWO)
def test_means_and_variances(name: str, theirs: dict[str, torch.Tensor]) -> None:
    found = ours(name, ["0", "1"], TWO[name])
    wanted = theirs[f"{name}/2"].numpy() - inputs()["base"].numpy()
    assert close(found, wanted)
    assert close(found**2, wanted**2)
    assert close((found != 0).astype(float), (wanted != 0).astype(float))


@pytest.mark.parametrize("name", TWO)
def test_seeds_say_what_is_drawn(name: str) -> None:
    first, again, other = (ours(name, ["0", "1"], TWO[name], seed=seed) for seed in (7, 7, 8))
    assert np.array_equal(first, again)
    assert np.mean(first != other) > 0.2


@pytest.mark.parametrize("name", ONE)
def test_rescaled_changes_add_up_to_what_they_were(name: str) -> None:
    delta = (inputs()["0"] - inputs()["base"]).numpy()
    found = ours(name, ["0"], {**ONE[name], "rescale": True})
    assert np.abs(found).sum() == pytest.approx(np.abs(delta).sum(), rel=1e-9)
