"""What every optimizer keeps: it learns, a resumed run goes on bit for bit, its state is as large as it says."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from tunesmith.core.events import Event
from tunesmith.core.plugins import build, names
from tunesmith.optimizers import OptimizerSpec
from tunesmith.train import checkpoint
from tunesmith.train.checkpoint import Learned
from tunesmith.train.verb import resume, train

OPTIMIZERS = names("optimizer")


def spec_of(name: str) -> OptimizerSpec:
    found = build("optimizer", name)
    assert isinstance(found, OptimizerSpec)
    return found


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 3))


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, seed: int) -> list[float]:
    draw = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(count):
        inputs = torch.randn(32, 12, generator=draw)
        loss = (model(inputs) - inputs[:, :3].sin()).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def built(name: str, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return spec_of(name).build([{"params": list(model.parameters()), "lr": lr}])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("name", OPTIMIZERS)
class TestOptimizer:
    def test_learns(self, name: str) -> None:
        model = layers()
        losses = steps(model, built(name, model, 1e-2), 150, seed=1)
        assert sum(losses[-5:]) < 0.5 * sum(losses[:5])

    def test_each_group_keeps_its_own_lr(self, name: str) -> None:
        model = layers()
        frozen, moving = model[0].weight, model[2].weight
        before = frozen.detach().clone(), moving.detach().clone()
        optimizer = spec_of(name).build([{"params": [frozen], "lr": 0.0}, {"params": [moving], "lr": 1e-2}])
        steps(model, optimizer, 3, seed=1)
        assert torch.equal(frozen, before[0])
        assert not torch.equal(moving, before[1])

    def test_every_weight_is_in_one_group(self, name: str) -> None:
        model = layers()
        grouped = [weight for group in built(name, model, 1e-2).param_groups for weight in group["params"]]
        assert len(grouped) == len({id(weight) for weight in grouped}) == len(list(model.parameters()))

    def test_its_state_is_as_large_as_it_says(self, name: str) -> None:
        model = layers()
        optimizer = built(name, model, 1e-2)
        steps(model, optimizer, 2, seed=1)
        held = sum(
            value.numel() * value.element_size()
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor) and value.numel() > 1
        )
        shapes = [weight.shape for weight in model.parameters()]
        assert spec_of(name).state_bytes(shapes) == pytest.approx(held, rel=0.1)

    def test_a_checkpoint_brings_it_back(self, name: str, tmp_path: Path) -> None:
        model = layers()
        optimizer = built(name, model, 1e-2)
        steps(model, optimizer, 5, seed=1)
        checkpoint.save(tmp_path / "step-5", Learned.of(model), optimizer, {"step": 5, "tokens": 0}, {})
        expected = steps(model, optimizer, 5, seed=2)
        other = layers()
        again = built(name, other, 1e-2)
        checkpoint.restore(checkpoint.read(tmp_path / "step-5"), Learned.of(other), again)
        assert steps(other, again, 5, seed=2) == expected
        for left, right in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(left, right)

    def test_a_resumed_run_is_the_uninterrupted_one(self, name: str, base: Path, tmp_path: Path) -> None:
        def hear(event: Event) -> None:
            if event.kind == "step" and event.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        options = {"optimizer": name, "train": {"epochs": 3, "neftune": 5, "warmup": 2}}
        whole = train(tiny.run_of(base, tmp_path / "whole", **{**options, "train": dict(options["train"])}))
        cut = train(tiny.run_of(base, tmp_path / "cut", **options), hear=hear)
        assert cut.ended == "preempted"
        cut = resume(cut.folder.path)
        assert tiny.figures(cut) == tiny.figures(whole)
        for part in ("model", f"checkpoints/step-{whole.state.step:08d}"):
            left, right = tiny.tensors(whole.folder.path / part), tiny.tensors(cut.folder.path / part)
            assert left.keys() == right.keys()
            assert all(torch.equal(value, right[key]) for key, value in left.items())


class TestAdamW:
    def test_is_adam_with_weight_decay_apart(self) -> None:
        """Against the formula in float64, matrices decayed and vectors not."""
        model = layers().double()
        weights = [weight.detach().clone() for weight in model.parameters()]
        spec = build("optimizer", {"adamw": {"lr": 1e-2, "weight_decay": 0.1, "betas": [0.8, 0.95]}})
        assert isinstance(spec, OptimizerSpec)
        optimizer = spec.build([{"params": list(model.parameters()), "lr": 1e-2}])
        first = [torch.zeros_like(weight) for weight in weights]
        second = [torch.zeros_like(weight) for weight in weights]
        for step in range(1, 4):
            inputs = torch.full((4, 12), 0.1 * step, dtype=torch.float64)
            optimizer.zero_grad()
            model(inputs).square().sum().backward()
            for number, weight in enumerate(model.parameters()):
                assert weight.grad is not None
                first[number] = 0.8 * first[number] + 0.2 * weight.grad
                second[number] = 0.95 * second[number] + 0.05 * weight.grad**2
                move = first[number] / (1 - 0.8**step) / ((second[number] / (1 - 0.95**step)).sqrt() + 1e-8)
                decay = 0.1 * weights[number] if weights[number].ndim > 1 else 0.0
                weights[number] = weights[number] - 1e-2 * (decay + move)
            optimizer.step()
        for weight, expected in zip(model.parameters(), weights, strict=True):
            assert torch.allclose(weight, expected, atol=1e-12)
