"""Figures of a step: read from the device once, the same numbers as one by one; norms and clipping of all gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tunesmith.objectives import added_up
from tunesmith.train.loop import _norm

READ = "aten._local_scalar_dense.default"


class Reads(TorchDispatchMode):
    """Counts the numbers that are read one by one, each of which waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += str(func) == READ
        return func(*args, **(kwargs or {}))


def one_by_one(told: list[dict[str, Tensor]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for figures in told:
        for name, value in figures.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return sums


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_sums_are_those_of_numbers_read_one_by_one(kind: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)

    def number() -> Tensor:
        return torch.randn((), generator=draw, dtype=torch.float64).to(kind)

    told = [{"loss": number(), "accuracy": number()}, {"loss": number(), "late": number().float()}]
    assert added_up(told) == one_by_one(told)
    assert list(added_up(told)) == ["loss", "accuracy", "late"]


def test_nothing_adds_up_to_nothing() -> None:
    assert added_up([]) == {}


def test_numbers_are_read_at_once() -> None:
    told = [{"loss": torch.tensor(float(number)), "other": torch.tensor(1.0)} for number in range(20)]
    with Reads() as plainly:
        one_by_one(told)
    with Reads() as ours:
        added_up(told)
    assert plainly.count == 40
    assert ours.count == 0


def test_what_has_a_gradient_or_one_entry_is_a_number_too() -> None:
    assert added_up([{"loss": torch.ones(1, requires_grad=True) * 3}]) == {"loss": 3.0}


def weights(change: Callable[[Tensor], Tensor] = lambda grad: grad) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.zeros(size)) for size in ((3, 4), (7,), (2, 2), (5,))]
    for number, weight in enumerate(made[:3]):
        weight.grad = change(torch.randn(weight.shape, generator=draw) * 10**number)
    return made


def test_the_norm_is_that_of_all_gradients() -> None:
    numbers = [value for weight in weights() if weight.grad is not None for value in weight.grad.flatten().tolist()]
    assert float(_norm(weights())) == pytest.approx(math.sqrt(sum(value * value for value in numbers)), rel=1e-6)
    assert float(_norm(weights()[3:])) == 0.0


def test_the_norm_of_gradients_in_16_bits_is_found_in_float32() -> None:
    half = weights(lambda grad: grad.bfloat16().float())
    expected = float(_norm(half))
    for weight in half:
        if weight.grad is not None:
            weight.data, grad = weight.data.bfloat16(), weight.grad.bfloat16()
            weight.grad = grad
    assert _norm(half).dtype == torch.float32
    assert float(_norm(half)) == pytest.approx(expected, rel=1e-6)


def test_what_is_not_finite_shows() -> None:
    bad = weights(lambda grad: grad.index_fill(0, torch.tensor([1]), float("inf")))
    assert not math.isfinite(float(_norm(bad)))
