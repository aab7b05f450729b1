"""What every optimizer keeps: it learns, a resumed run goes on bit for bit, its state is as large as it says."""

from __future__ import annotations

import copy
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from tunesmith.core.events import Event
from tunesmith.core.plugins import build, names
from tunesmith.core.problem import Problem
from tunesmith.optimizers import OptimizerSpec, named
from tunesmith.train import checkpoint
from tunesmith.train.checkpoint import Learned
from tunesmith.train.verb import resume, train

OPTIMIZERS = names("optimizer")

SMALL: dict[str, dict[str, Any]] = {
    "galore": {"rank": 4, "refresh": 3},
    "apollo": {"rank": 4, "refresh": 3},
    "badam": {"every": 2},
    "lisa": {"layers": 1, "every": 2},
}
"""Options that fit the small layers below, where the defaults are for large ones."""

RUNS: dict[str, dict[str, Any]] = {"badam": {"method": "full"}, "lisa": {"method": "full"}}
"""What a run with an optimizer must also say."""


FORMS: list[dict[str, dict[str, Any]]] = [
    {"muon": {"look": "plain", "size": "original", "rest_lr": 1e-3}},
    {"galore": {"rank": 4, "refresh": 3, "moments": "8bit"}},
    {"galore": {"rank": 12, "refresh": 3, "moments": "8bit"}},
    {"apollo": {"rank": 1, "refresh": 3}},
    {"badam": {"every": 2, "order": "ascending"}},
    {"lisa": {"layers": 1, "every": 2, "resting": "dropped"}},
    {"bf16": {"rounding": "stochastic", "moments": "bfloat16"}},
    {"bf16": {"rounding": "kahan"}},
    {"bf16": {"rounding": "kahan", "moments": "bfloat16"}},
]
"""Other forms of optimizers, whose state differs."""


def spec_of(name: str | dict[str, Any]) -> OptimizerSpec:
    """The optimizer for small layers; the test is skipped where this machine cannot do it."""
    found = build("optimizer", {name: SMALL.get(name)} if isinstance(name, str) else name)
    assert isinstance(found, OptimizerSpec)
    try:
        found.check(torch.device("cpu"), found.holds)
    except Problem as problem:
        pytest.skip(str(problem))
    return found


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 400), nn.Tanh(), nn.Linear(400, 3))


class Course:
    """A model that learns a small task with one optimizer, as the loop would have it."""

    def __init__(self, name: str | dict[str, Any], model: nn.Module, lr: float = 1e-2) -> None:
        self.spec, self.model, self.done = spec_of(name), model.to(spec_of(name).holds), 0
        self.optimizer = self.spec.build(named([{"params": list(model.parameters()), "lr": lr}], model), seed=7)

    def run(self, count: int, seed: int) -> list[float]:
        return [self.step(inputs) for inputs in task(count, seed)]

    def step(self, inputs: torch.Tensor) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        self.spec.before_step(self.optimizer, self.done)
        loss = self.loss(inputs)
        loss.backward()
        self.optimizer.step()
        self.done += 1
        return loss.item()

    def loss(self, inputs: torch.Tensor) -> torch.Tensor:
        return (self.model(inputs.to(self.spec.holds)).float() - inputs[:, :3].sin()).square().mean()

    def held(self) -> int:
        """Bytes of state, numbers left out."""
        return sum(
            value.numel() * value.element_size()
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor) and value.numel() > 1
        )


def task(count: int, seed: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(32, 12, generator=draw) for _ in range(count)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base"))


def check_size(name: str | dict[str, Any]) -> None:
    course = Course(name, layers())
    held = [course.held() for inputs in task(24, seed=1) if course.step(inputs)]
    shapes = {name: weight.shape for name, weight in course.model.named_parameters()}
    assert course.spec.state_bytes(shapes) == pytest.approx(max(held), rel=0.1)


def check_checkpoint(name: str | dict[str, Any], where: Path) -> None:
    course = Course(name, layers())
    learned = Learned.of(course.model)
    course.run(5, seed=1)
    checkpoint.save(where / "step-5", learned, course.optimizer, {"step": 5, "tokens": 0}, {})
    expected = course.run(5, seed=2)
    again = Course(name, layers())
    checkpoint.restore(checkpoint.read(where / "step-5"), Learned.of(again.model), again.optimizer)
    again.done = 5
    assert again.run(5, seed=2) == expected
    for left, right in zip(course.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("name", OPTIMIZERS)
class TestOptimizer:
    def test_learns(self, name: str) -> None:
        losses = Course(name, layers()).run(150, seed=1)
        assert sum(losses[-5:]) / 5 < 0.5 * losses[0]

    def test_a_model_learns_at_its_own_lr(self, name: str, base: Path, tmp_path: Path) -> None:
        """All rows in every step, so that the losses are of the same text."""
        dtype = str(spec_of(name).holds)[6:]
        options = {"model": {"dtype": dtype}, "method": "full", "optimizer": {name: SMALL.get(name)}}
        result = tiny.trained(base, tmp_path, train={"steps": 12, "epochs": 12, "rows_per_step": 12}, **options)
        losses = tiny.losses(result)
        assert losses[-1] < losses[0] - 0.004

    def test_each_group_keeps_its_own_lr(self, name: str) -> None:
        course = Course(name, layers())
        frozen, moving = course.model[0].weight, course.model[2].weight
        before = frozen.detach().clone(), moving.detach().clone()
        groups = [{"params": [frozen], "lr": 0.0}, {"params": [moving], "lr": 1e-2}]
        course.optimizer = course.spec.build(named(groups, course.model))
        course.run(6, seed=1)
        assert torch.equal(frozen, before[0])
        assert not torch.equal(moving, before[1])

    def test_every_weight_is_in_one_group(self, name: str) -> None:
        course = Course(name, layers())
        grouped = [weight for group in course.optimizer.param_groups for weight in group["params"]]
        assert len(grouped) == len({id(weight) for weight in grouped}) == len(list(course.model.parameters()))

    def test_its_state_is_as_large_as_it_says(self, name: str) -> None:
        check_size(name)

    def test_a_checkpoint_brings_it_back(self, name: str, tmp_path: Path) -> None:
        check_checkpoint(name, tmp_path)

    def test_is_built_on_shapes_alone(self, name: str) -> None:
        """As a run is checked before its model is read."""
        with torch.device("meta"):
            model = layers()
        spec_of(name).build(named([{"params": list(model.parameters()), "lr": 1e-2}], model))

    def test_a_resumed_run_is_the_uninterrupted_one(self, name: str, base: Path, tmp_path: Path) -> None:
        def hear(event: Event) -> None:
            if event.kind == "step" and event.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        dtype = str(spec_of(name).holds)[6:]
        options = {"model": {"dtype": dtype}, "train": {"epochs": 3, "neftune": 5, "warmup": 2}}
        options |= {"optimizer": {name: SMALL.get(name)}, **RUNS.get(name, {})}
        whole = train(tiny.run_of(base, tmp_path / "whole", **copy.deepcopy(options)))
        cut = train(tiny.run_of(base, tmp_path / "cut", **options), hear=hear)
        assert cut.ended == "preempted"
        cut = resume(cut.folder.path)
        assert tiny.figures(cut) == tiny.figures(whole)
        for part in ("model", f"checkpoints/step-{whole.state.step:08d}"):
            left, right = tiny.tensors(whole.folder.path / part), tiny.tensors(cut.folder.path / part)
            assert left.keys() == right.keys()
            assert all(torch.equal(value, right[key]) for key, value in left.items())


@pytest.mark.parametrize("form", FORMS, ids=str)
class TestForms:
    def test_its_state_is_as_large_as_it_says(self, form: dict[str, Any]) -> None:
        check_size(form)

    def test_a_checkpoint_brings_it_back(self, form: dict[str, Any], tmp_path: Path) -> None:
        check_checkpoint(form, tmp_path)


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


class TestRefusals:
    """What a run is told before its data are read, which are not there."""

    @pytest.mark.parametrize(
        ("optimizer", "method", "options", "words"),
        [
            ("muon", "bitfit", {"family": "qwen2"}, r"optimizer\.muon: is for matrices inside layers, and none"),
            ({"galore": {"rank": 4}}, "bitfit", {"family": "qwen2"}, r"optimizer\.galore: is for matrices inside"),
            ("apollo", "lora", {}, r"optimizer\.apollo\.rank: is 256, .* has only 8 on its shorter side.*adamw"),
            ("badam", "lora", {}, r"optimizer\.badam: is for the base's own weights, and the method lora"),
            ("lisa", {"freeze": {"last": 1}}, {}, r"optimizer\.lisa: lets layers learn in turn and needs 3 of them"),
            ("bf16", "lora", {}, r"optimizer\.bf16: holds weights in bfloat16"),
            ("paged_adamw", "lora", {}, r"optimizer\.paged_adamw: moves state between a CUDA GPU"),
        ],
    )
    def test_what_does_not_fit_is_refused_early(
        self, optimizer: Any, method: Any, options: dict[str, Any], words: str, tmp_path: Path
    ) -> None:
        base = tiny.folder(tmp_path / "base", **options)
        run = tiny.run_of(base, tmp_path, optimizer=optimizer, method=method)
        (tmp_path / "sft.jsonl").unlink()
        with pytest.raises(Problem, match=words):
            train(run)

    def test_schedule_free_goes_without_a_falling_lr(self, base: Path, tmp_path: Path) -> None:
        with pytest.raises(Problem, match=r"train\.schedule: is linear, and the optimizer schedule_free goes with"):
            train(tiny.run_of(base, tmp_path, optimizer="schedule_free", train={"schedule": "linear"}))
        result = tiny.trained(base, tmp_path, optimizer="schedule_free", train={"warmup": 2})
        assert {event.values["lr"] for event in tiny.events(result, "step")[2:]} == {5e-4}
