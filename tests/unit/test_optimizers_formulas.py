"""Optimizers against their papers' formulas and promises."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tunesmith.core.plugins import build
from tunesmith.core.problem import Problem
from tunesmith.optimizers import Groups, OptimizerSpec, named
from tunesmith.optimizers._own import draws
from tunesmith.optimizers.apollo import limited
from tunesmith.optimizers.bf16 import by_chance
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
        param.grad = torch.randn(param.shape, generator=draw).to(param.dtype)


def alone(shape: tuple[int, ...], name: str = "layers.0.weight") -> tuple[Groups, Tensor]:
    """One weight in double precision, and a copy of it."""
    groups = groups_of({name: shape})
    weight = nn.Parameter(groups[0]["params"][0].detach().double())
    groups[0]["params"] = [weight]
    return groups, weight.detach().clone()


def walk(optimizer: Optimizer, weight: Tensor, count: int) -> list[Tensor]:
    """Steps with gradients from seeds; the gradients."""
    seen = []
    for step in range(count):
        gradients([weight], step)
        assert weight.grad is not None
        seen.append(weight.grad.clone())
        optimizer.step()
    return seen


class Adam:
    """Adam's direction in plain words."""

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        self.betas, self.eps, self.step = betas, eps, 0
        self.first: Tensor | float = 0.0
        self.second: Tensor | float = 0.0

    def __call__(self, grad: Tensor) -> Tensor:
        (a, b), self.step = self.betas, self.step + 1
        self.first = a * self.first + (1 - a) * grad
        self.second = b * self.second + (1 - b) * grad**2
        mean, square = self.first / (1 - a**self.step), self.second / (1 - b**self.step)
        return mean / (square**0.5 + self.eps)


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
        assert values.min() > 0.6
        assert values.max() < 1.3
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


class TestLion:
    def test_is_its_formula(self) -> None:
        groups, weight = alone((6, 5))
        optimizer = spec_of("lion", betas=[0.8, 0.95], weight_decay=0.2).build(groups)
        mean = torch.zeros_like(weight)
        for grad in walk(optimizer, groups[0]["params"][0], 6):
            weight = weight - 1e-2 * ((0.8 * mean + 0.2 * grad).sign() + 0.2 * weight)
            mean = 0.95 * mean + 0.05 * grad
        assert torch.allclose(groups[0]["params"][0], weight, atol=1e-12)


class TestAdafactor:
    @pytest.mark.parametrize("shape", [(6, 5), (7,)])
    def test_is_its_formula(self, shape: tuple[int, ...]) -> None:
        groups, weight = alone(shape)
        optimizer = spec_of("adafactor", weight_decay=0.1).build(groups)
        square, sizes = torch.zeros_like(weight), []
        for number, grad in enumerate(walk(optimizer, groups[0]["params"][0], 6), start=1):
            forget = number**-0.8
            square = (1 - forget) * square + forget * grad**2
            guess = square
            if weight.ndim == 2:
                guess = square.mean(1, keepdim=True) * square.mean(0, keepdim=True) / square.mean()
            update = grad / guess.sqrt()
            sizes.append(float(update.square().mean().sqrt()))
            update = update / max(1.0, sizes[-1])
            size = max(1e-3, float(weight.square().mean().sqrt()))
            decay = 0.1 if weight.ndim == 2 else 0.0
            weight = weight * (1 - 1e-2 * decay) - size * min(1e-2, number**-0.5) * update
        assert max(sizes) > 1.01
        assert torch.allclose(groups[0]["params"][0], weight, atol=1e-10)


class TestScheduleFree:
    def test_is_its_formula(self) -> None:
        """With the three sequences written out; the optimizer holds two of them."""
        groups, start = alone((6, 5))
        spec = spec_of("schedule_free", weight_decay=0.3, betas=[0.8, 0.95])
        optimizer = spec.build(groups)
        ahead = average = start
        square, total = torch.zeros_like(start), 0.0
        for number, lr in enumerate([0.01, 0.02, 0.03, 0.03, 0.03], start=1):
            optimizer.param_groups[0]["lr"] = lr
            between = 0.2 * ahead + 0.8 * average
            assert torch.allclose(groups[0]["params"][0], between, atol=1e-12)
            (grad,) = walk(optimizer, groups[0]["params"][0], 1)
            square = 0.95 * square + 0.05 * grad**2
            update = grad / ((square / (1 - 0.95**number)).sqrt() + 1e-8) + 0.3 * between
            ahead = ahead - lr * update
            total += lr**2
            average = average + lr**2 / total * (ahead - average)
        with spec.still(optimizer):
            assert torch.allclose(groups[0]["params"][0], average, atol=1e-12)

    def test_the_weights_come_back_bit_for_bit(self) -> None:
        groups = groups_of(MODEL)
        spec = spec_of("schedule_free")
        optimizer = spec.build(groups)
        for step in range(3):
            gradients(groups[0]["params"], step)
            optimizer.step()
        before = [weight.detach().clone() for weight in groups[0]["params"]]
        with spec.still(optimizer):
            assert not torch.equal(groups[0]["params"][0], before[0])
        for weight, old in zip(groups[0]["params"], before, strict=True):
            assert torch.equal(weight, old)


class TestGaLore:
    @pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
    def test_is_its_formula(self, shape: tuple[int, ...]) -> None:
        """Against the projection written as a matrix of full size, which does not care for signs of directions."""
        groups, weight = alone(shape)
        spec = spec_of("galore", rank=3, refresh=4, scale=0.5, weight_decay=0.1, betas=[0.8, 0.9], eps=1e-3)
        optimizer = spec.build(groups)
        adam, tall = Adam((0.8, 0.9), 1e-3), shape[0] > shape[1]
        for number, grad in enumerate(walk(optimizer, groups[0]["params"][0], 10)):
            if number % 4 == 0:
                square = grad.T @ grad if tall else grad @ grad.T
                found = torch.linalg.eigh(square).eigenvectors[:, -3:].flip(1)
                left, _, right = torch.linalg.svd(grad)
                signs = (found * (right[:3].T if tall else left[:, :3])).sum(0).sign()
                basis = found * signs
            low = adam(grad @ basis if tall else basis.T @ grad)
            weight = weight - 1e-2 * (0.5 * (low @ basis.T if tall else basis @ low) + 0.1 * weight)
        assert torch.allclose(groups[0]["params"][0], weight, atol=1e-9)

    def test_at_full_rank_it_is_adam_in_turned_coordinates(self) -> None:
        groups, start = alone((9, 6))
        optimizer = spec_of("galore", rank=6, refresh=1000, scale=1.0).build(groups)
        grads = walk(optimizer, groups[0]["params"][0], 8)
        turn = torch.linalg.svd(grads[0]).Vh.T
        turned = nn.Parameter(start @ turn)
        adam = torch.optim.Adam([turned], lr=1e-2)
        for grad in grads:
            turned.grad = grad @ turn
            adam.step()
        assert torch.allclose(groups[0]["params"][0] @ turn, turned, atol=1e-9)

    def test_an_update_has_the_rank(self) -> None:
        groups, start = alone((20, 12))
        walk(spec_of("galore", rank=3).build(groups), groups[0]["params"][0], 5)
        assert torch.linalg.matrix_rank(groups[0]["params"][0] - start, atol=1e-9) == 3

    def test_all_other_weights_go_to_adamw(self) -> None:
        groups = groups_of(MODEL)
        optimizer = spec_of("galore", rank=4).build(groups)
        gradients(groups[0]["params"], 0)
        optimizer.step()
        held = {
            name: "projector" in optimizer.state[weight]
            for name, weight in zip(MODEL, groups[0]["params"], strict=True)
        }
        assert {name for name, projected in held.items() if projected} == {"layers.0.up.weight", "layers.1.up.weight"}

    def test_eight_bits_are_close_to_all(self) -> None:
        pytest.importorskip("bitsandbytes")
        ends = []
        for moments in ("float32", "8bit"):
            groups = groups_of({"layers.0.weight": (1100, 16)})
            weight = groups[0]["params"][0]
            start = weight.detach().clone()
            optimizer = spec_of("galore", rank=8, moments=moments).build(groups)
            walk(optimizer, weight, 10)
            ends.append(weight.detach() - start)
        assert optimizer.state[weight]["mean_codes"].dtype == torch.uint8
        assert 0 < float((ends[0] - ends[1]).norm() / ends[0].norm()) < 0.05

    def test_a_rank_that_no_matrix_has_is_refused(self) -> None:
        with pytest.raises(Problem, match=r"optimizer\.galore\.rank: is 9, .* has only 8 on its shorter side"):
            spec_of("galore", rank=9).build(groups_of(MODEL))


class TestApollo:
    @pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
    @pytest.mark.parametrize("rank", [3, 1])
    def test_is_its_formula(self, shape: tuple[int, ...], rank: int) -> None:
        groups, weight = alone(shape)
        optimizer = spec_of("apollo", rank=rank, refresh=4, weight_decay=0.1).build(groups, seed=5)
        adam, before = Adam(), math.inf
        for number, grad in enumerate(walk(optimizer, groups[0]["params"][0], 10)):
            draw = draws(weight.device, 5, 0, number // 4)
            basis = torch.randn(6, rank, generator=draw, dtype=torch.float64) / math.sqrt(rank)
            # One row for each of the nine channels, whichever way the matrix lies.
            lying = grad if shape[0] > shape[1] else grad.T
            low = lying @ basis
            wanted = adam(low)
            if rank == 1:
                scaled = lying * (wanted.norm() / low.norm()) * math.sqrt(128)
            else:
                scaled = lying * (wanted.norm(dim=1) / low.norm(dim=1))[:, None]
            norm = float(scaled.norm())
            scaled, before = scaled * (min(norm, 1.01 * before) / norm), min(norm, 1.01 * before)
            weight = weight - 1e-2 * ((scaled if shape[0] > shape[1] else scaled.T) + 0.1 * weight)
        assert torch.allclose(groups[0]["params"][0], weight, atol=1e-7)

    def test_the_projection_keeps_lengths_on_average(self) -> None:
        """Which makes the ratio of two norms after it an estimate of the ratio before."""
        vector = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        groups, _ = alone((50, 40))
        optimizer = spec_of("apollo", rank=32).build(groups)
        found = [optimizer.parts[0]._projector(groups[0]["params"][0], period, 32) for period in range(400)]
        ratio = torch.stack([(vector @ basis).square().sum() for basis in found]).mean() / vector.square().sum()
        assert float(ratio) == pytest.approx(1.0, abs=0.04)

    def test_an_update_grows_by_a_hundredth_at_most(self) -> None:
        state: dict[str, Tensor] = {}
        sizes = [float(limited(torch.full((4, 4), size), state).norm()) for size in (1.0, 100.0, 100.0, 0.5, 0.0, 7.0)]
        assert sizes == pytest.approx([4.0, 4.04, 4.0804, 2.0, 0.0, 28.0])


class TestTurns:
    SIX = {"embed.weight": (20, 8), **{f"layers.{number}.up.weight": (12, 8) for number in range(6)}, "norm": (8,)}

    def active(self, spec: OptimizerSpec, optimizer: Optimizer, groups: Groups, step: int) -> set[str]:
        """The names of the weights that learn in a step; all weights are moved by it."""
        spec.before_step(optimizer, step)
        weights = dict(zip(self.SIX, groups[0]["params"], strict=True))
        learn = {name for name, weight in weights.items() if weight.requires_grad}
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        for name, weight in weights.items():
            weight.grad = torch.ones_like(weight) if name in learn else None
        optimizer.step()
        assert {name for name in weights if not torch.equal(before[name], weights[name])} == learn
        return learn

    @pytest.mark.parametrize("order", ["random", "ascending", "descending"])
    def test_badam_visits_each_layer_once_a_round(self, order: str) -> None:
        spec, groups = spec_of("badam", every=3, order=order), groups_of(self.SIX)
        optimizer = spec.build(groups, seed=3)
        rounds = []
        for first in (0, 18):
            seen = [self.active(spec, optimizer, groups, step) for step in range(first, first + 18)]
            assert all(len(found) == 1 for found in seen)
            assert seen[0::3] == seen[1::3] == seen[2::3]
            rounds.append([next(iter(found)) for found in seen[::3]])
        layers = [name for name in self.SIX if name.startswith("layers")]
        assert sorted(rounds[0]) == sorted(rounds[1]) == layers
        assert (rounds[0] == layers) == (order == "ascending")
        assert (rounds[0] == layers[::-1]) == (order == "descending")
        assert (rounds[0] != rounds[1]) == (order == "random")

    def test_badam_keeps_the_state_of_one_layer(self) -> None:
        spec, groups = spec_of("badam", every=2), groups_of(self.SIX)
        optimizer = spec.build(groups)
        for step in range(7):
            learn = self.active(spec, optimizer, groups, step)
            assert len(optimizer.state) == len(learn) == 1
            assert float(next(iter(optimizer.state.values()))["step"]) == step % 2 + 1

    def test_badams_ends_can_have_a_turn(self) -> None:
        spec, groups = spec_of("badam", every=1, ends="learn"), groups_of(self.SIX)
        optimizer = spec.build(groups)
        seen = [self.active(spec, optimizer, groups, step) for step in range(7)]
        assert {"embed.weight", "norm"} in seen
        assert set.union(*seen) == set(self.SIX)

    @pytest.mark.parametrize("resting", ["kept", "dropped"])
    def test_lisa_draws_so_many_layers_and_keeps_the_ends(self, resting: str) -> None:
        spec, groups = spec_of("lisa", layers=2, every=3, resting=resting), groups_of(self.SIX)
        optimizer = spec.build(groups, seed=3)
        seen = [self.active(spec, optimizer, groups, step) for step in range(60)]
        assert all(len(found) == 4 and {"embed.weight", "norm"} <= found for found in seen)
        assert all(seen[step] == seen[step - step % 3] for step in range(60))
        assert len({frozenset(found) for found in seen}) > 5
        assert len(optimizer.state) == (8 if resting == "kept" else 4)

    @pytest.mark.parametrize("name", ["badam", "lisa"])
    def test_what_learns_follows_from_seed_and_step(self, name: str) -> None:
        spec = spec_of(name, every=1)
        found = []
        for seed, steps in ((1, range(12)), (1, reversed(range(12))), (2, range(12))):
            groups = groups_of(self.SIX)
            optimizer = spec.build(groups, seed=seed)
            seen = {step: self.active(spec, optimizer, groups, step) for step in steps}
            found.append([seen[step] for step in range(12)])
        assert found[0] == found[1] != found[2]

    @pytest.mark.parametrize("name", ["badam", "lisa"])
    def test_a_model_without_layers_is_refused(self, name: str) -> None:
        with pytest.raises(Problem, match=rf"optimizer\.{name}: lets layers learn in turn and needs . of them"):
            spec_of(name).build(groups_of({"embed.weight": (20, 8), "layers.0.up.weight": (12, 8)}))

    def test_the_plan_knows_the_gradients_of_what_learns(self) -> None:
        shapes = {name: torch.Size(shape) for name, shape in self.SIX.items()}
        assert spec_of("badam").gradient_bytes(shapes) == 4 * 96
        assert spec_of("lisa", layers=3).gradient_bytes(shapes) == 4 * (160 + 8 + 3 * 96)
        assert spec_of("lisa", layers=3, resting="dropped").state_bytes(shapes) == 8 * (160 + 8 + 3 * 96)
        assert spec_of("adamw").gradient_bytes(shapes) == 4 * (160 + 8 + 6 * 96)


class TestBf16:
    def test_rounding_by_chance_is_right_on_average(self) -> None:
        """A value a fifth of the way between two bfloat16 numbers goes up in a fifth of all cases, of either sign."""
        for low, high in ((1.0, 1.0078125), (-1.0, -1.0078125), (3e-5, None)):
            low = float(torch.tensor(low).bfloat16())
            high = high or float(torch.nextafter(torch.tensor(low).bfloat16(), torch.tensor(1.0).bfloat16()))
            wide = torch.full((100_000,), low + 0.2 * (high - low))
            found = by_chance(wide, torch.Generator().manual_seed(0)).float()
            assert set(found.tolist()) == {low, high}
            assert float((found == high).float().mean()) == pytest.approx(0.2, abs=0.006)

    def test_rounding_by_chance_leaves_what_fits(self) -> None:
        values = torch.tensor([0.0, 1.5, -2.0, math.inf, -math.inf, math.nan, 3.3895e38])
        found = by_chance(values, torch.Generator().manual_seed(0)).float()
        assert torch.equal(found[:5], values[:5])
        assert found[5].isnan()

    @staticmethod
    def moved(rounding: str, steps: int = 20) -> tuple[Tensor, Tensor]:
        """How far weights of the usual size 0.02 go at lr 2e-5 in bfloat16, and in float32."""
        draw = torch.Generator().manual_seed(0)
        start = (0.02 * torch.randn(200, 100, generator=draw)).bfloat16()
        narrow, wide = nn.Parameter(start.clone()), nn.Parameter(start.float())
        if rounding == "nearest":
            optimizer: Optimizer = torch.optim.AdamW([narrow], weight_decay=0.0, lr=2e-5)
        else:
            spec = spec_of("bf16", rounding=rounding)
            optimizer = spec.build([{"params": [narrow], "lr": 2e-5}], seed=1)
        reference = torch.optim.AdamW([wide], weight_decay=0.0, lr=2e-5)
        slope = torch.randn(200, 100, generator=draw)
        for _ in range(steps):
            noise = torch.randn(200, 100, generator=draw)
            for weight, each in ((narrow, optimizer), (wide, reference)):
                weight.grad = (slope + 0.3 * noise).to(weight.dtype)
                each.step()
        return narrow.detach().float() - start.float(), wide.detach() - start.float()

    def test_plain_rounding_loses_most_updates(self) -> None:
        """Why this optimizer exists: large weights do not move at all."""
        found, wanted = self.moved("nearest")
        assert float((found != 0).float().mean()) < 0.6
        assert float(found.norm() / wanted.norm()) < 0.8

    @pytest.mark.parametrize(("rounding", "least"), [("master", 0.99), ("kahan", 0.99), ("stochastic", 0.88)])
    def test_updates_survive(self, rounding: str, least: float) -> None:
        found, wanted = self.moved(rounding)
        assert float(torch.nn.functional.cosine_similarity(found.flatten(), wanted.flatten(), dim=0)) > least
        assert float((found * wanted.sign()).mean() / wanted.abs().mean()) == pytest.approx(1.0, abs=0.01)

    def test_chance_follows_from_the_seed(self) -> None:
        ends = []
        for seed in (1, 1, 2):
            groups = groups_of({"layers.0.weight": (30, 20)})
            weight = nn.Parameter(groups[0]["params"][0].detach().bfloat16())
            groups[0]["params"] = [weight]
            walk(spec_of("bf16", rounding="stochastic", moments="bfloat16").build(groups, seed=seed), weight, 3)
            ends.append(weight.detach().clone())
        assert torch.equal(ends[0], ends[1])
        assert not torch.equal(ends[0], ends[2])

    def test_averages_in_bfloat16_forget(self) -> None:
        """Rounded to the nearest, a mean square times 0.999 stays what it is."""
        groups = groups_of({"layers.0.weight": (50, 40)})
        weight = nn.Parameter(groups[0]["params"][0].detach().bfloat16())
        groups[0]["params"] = [weight]
        optimizer = spec_of("bf16", rounding="stochastic", moments="bfloat16").build(groups)
        for number in range(300):
            weight.grad = torch.ones_like(weight) * (number == 0)
            optimizer.step()
        square = optimizer.state[weight]["square"]
        assert square.dtype == torch.bfloat16
        assert float(square.float().mean()) == pytest.approx(1e-3 * 0.999**299, rel=0.02)

    def test_other_products_are_refused(self) -> None:
        with pytest.raises(Problem, match=r"optimizer\.bf16: holds weights in bfloat16.*Set model\.dtype to bfloat16"):
            spec_of("bf16").check(torch.device("cpu"), torch.float32)


class TestEightBit:
    def test_is_close_to_adamw(self) -> None:
        pytest.importorskip("bitsandbytes")
        ends = []
        for name in ("adamw", "adamw8bit"):
            groups = groups_of({"layers.0.weight": (100, 60)})
            weight = groups[0]["params"][0]
            start = weight.detach().clone()
            walk(spec_of(name, weight_decay=0.1).build(groups), weight, 10)
            ends.append(weight.detach() - start)
        assert 0 < float((ends[0] - ends[1]).norm() / ends[0].norm()) < 0.05

    @pytest.mark.parametrize(("name", "options"), [("adamw8bit", {}), ("galore", {"moments": "8bit"})])
    def test_the_package_it_needs_is_named(
        self, name: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(Problem, match=r'package bitsandbytes: .*pip install "tunesmith\[quantize\]"'):
            spec_of(name, **options).check(torch.device("cpu"), torch.float32)

    def test_paging_is_refused_without_a_gpu(self) -> None:
        with pytest.raises(Problem, match=r"optimizer\.paged_adamw: .* computes on cpu.*adamw8bit"):
            spec_of("paged_adamw").check(torch.device("cpu"), torch.float32)
