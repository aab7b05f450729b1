"""Layers compiled by torch: the same losses and gradients, one compiled layer for all, for batches of any length."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AttentionInterface

from tunesmith.models.attention import NAME, forest_attention
from tunesmith.models.fast import compile as lever
from tunesmith.models.fast import quicken, release
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy
from tunesmith.objectives import next_token_loss

GRAPHS = "unique_graphs"


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    """Nothing compiled before, and transformers' registry as it was."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    AttentionInterface.register(NAME, forest_attention)


def learned(layers: int, targets: str | list[str] = "all-linear") -> PeftModel:
    model = tiny.model("llama", num_hidden_layers=layers)
    model.set_attn_implementation(NAME)
    given: Any = get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    return given.train()


def told(model: PeftModel) -> list[tuple[float, list[Tensor]]]:
    """Losses and gradients of batches of several lengths and trees."""
    rows, out = tiny.forest_rows(), []
    policy = Policy(model.base_model.model, forest=True, trained=model)  # type: ignore[arg-type]
    for part in (rows, rows[:2], rows[2:3]):
        model.zero_grad()
        loss = next_token_loss(policy, plant(part))
        loss.backward()
        out.append((loss.item(), [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]))
    return out


def assert_same(ours: list[tuple[float, list[Tensor]]], theirs: list[tuple[float, list[Tensor]]]) -> None:
    for (loss, gradients), (expected, right) in zip(ours, theirs, strict=True):
        assert loss == pytest.approx(expected, rel=1e-6)
        assert len(gradients) == len(right) > 0
        for found, true in zip(gradients, right, strict=True):
            torch.testing.assert_close(found, true, rtol=1e-4, atol=1e-4 * float(true.abs().max()))


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"][GRAPHS]


def test_one_layer_is_compiled_for_all_and_for_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Dynamo and autograd see it; what the compiler beneath makes of the graphs is the next test's."""
    monkeypatch.setattr(lever, "BACKEND", "aot_eager")
    model = learned(4)
    expected = told(model)
    assert quicken(model, ["lora", "mlp", "compile"], torch.device("cpu"))["compile"] == 4
    first = told(model)
    assert_same(first, expected)
    once = graphs()
    assert 0 < once <= 8  # a layer's two halves, with the gradient of their input and, for the first layer, without
    assert_same(told(model), expected)
    assert graphs() == once


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_the_compiled_layer_learns_the_same() -> None:
    model = learned(1, ["q_proj"])
    expected = told(model)
    quicken(model, ["compile"], torch.device("cpu"))
    assert_same(told(model), expected)
    assert graphs() > 0


def test_with_a_cache_a_layer_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lever, "BACKEND", "eager")
    model = tiny.model("llama")
    model.set_attn_implementation(NAME)
    assert lever.pull(model) == 3
    tokens = torch.arange(3, 9)[None]
    answer = model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=4, do_sample=False)
    assert answer.shape == (1, 10)
    assert graphs() == 0


def test_levers_come_off_again_and_shapes_are_only_counted() -> None:
    model = tiny.model("llama")
    assert lever.pull(model) == 3
    assert [lever.COMPILED in vars(layer) for layer in model.model.layers] == [True] * 3
    release(model)
    assert not any(lever.COMPILED in vars(part) for part in model.modules())
    assert lever.pull(model.to("meta")) == 3
    assert not any(lever.COMPILED in vars(part) for part in model.modules())
