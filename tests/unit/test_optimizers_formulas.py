"""Optimizers against their papers' formulas and promises."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from tunesmith.core.plugins import build
from tunesmith.core.problem import Problem
from tunesmith.optimizers import Groups, OptimizerSpec, named
from tunesmith.optimizers.muon import orthogonal


def spec_of(name: str, **options: object) -> OptimizerSpec:
    found = build("optimizer", {name: options})
    assert isinstance(found, OptimizerSpec)
    return found


def groups_of(shapes: Mapping[str, tuple[int, ...]], lr: float = 1e-2) -> Groups:
    """One group of random weights by name."""
    draw = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in shapes.values()]
    return [{"params": params, "names": list(shapes), "lr": lr}]


MODEL = {
    "embed.weight": (20, 8),
    "layers.0.up.weight": (12, 8),
    "layers.0.norm.weight": (8,),
    "layers.1.up.weight": (12, 8),
    "layers.1.norm.weight": (8,),
    "head.weight": (20, 8),
}
"""A model of two layers by the names and shapes of its weights."""


def gradients(params: list[Tensor], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=draw)


class TestNames:
    def test_groups_get_the_names_of_their_weights(self) -> None:
        model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
        groups = named([{"params": [model[1].bias, model[0].weight], "lr": 1.0}], model)
        assert groups[0]["names"] == ["1.bias", "0.weight"]


class TestMuon:
    @pytest.mark.parametrize("shape", [(30, 30), (48, 16), (16, 48), (3, 12, 20)])
    def test_makes_singular_values_near_one(self, shape: tuple[int, ...]) -> None:
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        found = orthogonal(matrix, 8)
        inner = left.mT @ found @ right.mT
        values = inner.diagonal(dim1=-2, dim2=-1)
        assert 0.6 < values.min() and values.max() < 1.3
        assert (inner - torch.diag_embed(values)).abs().max() < 1e-3

    def test_an_update_has_the_size_of_adamws(self) -> None:
        groups = groups_of({"layers.0.weight": (64, 160)})
        before = groups[0]["params"][0].detach().clone()
        optimizer = spec_of("muon").build(groups)
        gradients(groups[0]["params"], 1)
        optimizer.step()
        update = (groups[0]["params"][0].detach() - before) / 1e-2
        assert float(update.square().mean().sqrt()) == pytest.approx(0.2, rel=0.2)

    def test_all_but_matrices_in_layers_go_to_adamw(self) -> None:
        groups, others = groups_of(MODEL), groups_of(MODEL)
        rest = [number for number, name in enumerate(MODEL) if not name.endswith("up.weight")]
        theirs = [others[0]["params"][number] for number in rest]
        reference = torch.optim.AdamW(
            [
                {"params": [theirs[0], theirs[3]], "weight_decay": 0.3},
                {"params": theirs[1:3], "weight_decay": 0.0},
            ],
            lr=0.05,
            betas=(0.8, 0.9),
        )
        spec = spec_of("muon", lr=1e-2, rest_lr=0.05, rest_betas=[0.8, 0.9], rest_weight_decay=0.3)
        own = spec.build(groups)
        for step in range(4):
            for params, optimizer in ((groups[0]["params"], own), (others[0]["params"], reference)):
                gradients(params, step)
                optimizer.step()
        for number, their in zip(rest, theirs, strict=True):
            assert torch.allclose(groups[0]["params"][number], their, atol=1e-6)
        for number in set(range(len(MODEL))) - set(rest):
            assert set(own.state[groups[0]["params"][number]]) == {"momentum"}

    def test_vectors_alone_are_refused(self) -> None:
        with pytest.raises(Problem, match=r"optimizer\.muon: is for matrices inside layers.*adamw"):
            spec_of("muon").build(groups_of({"layers.0.bias": (8,), "embed.weight": (20, 8)}))
