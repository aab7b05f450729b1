"""What the plan counts of a micro-batch, against what autograd keeps and the allocator holds in a real one."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from saved_bytes import kept_bytes
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from tunesmith.core.plugins import build
from tunesmith.methods import Method, trainable
from tunesmith.models.attention import NAME
from tunesmith.models.forest import Batch
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy
from tunesmith.train.rehearsal import Place, Rehearsed, rehearse
from tunesmith.train.survey import Memory, _forest, gigabytes

SIZES = {"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def rehearsed(model: PreTrainedModel, method: Method, batch: Batch, **place: Any) -> Rehearsed:
    trained = method.apply(model).train()
    return rehearse(model, trained, method, batch, Place(**place))


def really_kept(policy: Policy, batch: Batch) -> int:
    """Bytes that autograd keeps until the backward pass, each storage once, weights left out."""
    return kept_bytes(policy.trained, lambda: policy.logprobs(batch).sum())


def outline(kind: str, **sizes: Any) -> PreTrainedModel:
    with torch.device("meta"):
        return tiny.model(kind, **sizes)


def method(options: Any) -> Method:
    found = build("method", options)
    assert isinstance(found, Method)
    return found


@pytest.mark.parametrize("options", ["full", {"lora": {"rank": 4}}, "lora_fa", "bottleneck"], ids=str)
@pytest.mark.parametrize("forest", [True, False], ids=["forest", "padded"])
def test_what_is_kept_is_what_autograd_keeps(options: Any, forest: bool) -> None:
    """Rows are uneven: where all are as long, transformers leaves the mask of padded rows out, and the plan cannot."""
    batch = _forest(tokens=250, row=64, answer=0.0)
    counted = rehearsed(outline("llama", **SIZES), method(options).outline(), batch, forest=forest)
    model = tiny.model("llama", **SIZES)
    trained = method(options).apply(model).train()
    if forest:
        model.config._attn_implementation = NAME
    kept = really_kept(Policy(model, forest=forest, trained=trained), batch)
    assert counted.kept == pytest.approx(kept, rel=0.03)
    assert counted.gradients == sum(4 * weight.numel() for weight in trainable(trained).values())


def test_branches_are_counted_with_their_masks() -> None:
    batch = plant(tiny.sides_rows()[:1] * 3 + [tiny.sides_rows()[3]])
    counted = rehearsed(outline("llama", **SIZES), method("full"), batch)
    model = tiny.model("llama", **SIZES).train()
    model.config._attn_implementation = NAME
    assert counted.kept == pytest.approx(really_kept(Policy(model, forest=True), batch), rel=0.03)


def test_number_types_are_those_of_autocast() -> None:
    """Half as wide products are kept, beside norms in float32."""
    batch = _forest(tokens=256, row=64, answer=0.0)
    counted = rehearsed(outline("llama", **SIZES), method("full"), batch, dtype=torch.bfloat16)
    model = tiny.model("llama", **SIZES).train()
    model.config._attn_implementation = NAME
    policy = Policy(model, forest=True, autocast=torch.bfloat16)
    assert counted.kept == pytest.approx(really_kept(policy, batch), rel=0.05)


def most_held(model: nn.Module, policy: Policy, batch: Batch) -> int:
    """The most bytes that were held at once in a forward and backward pass, as the allocator reports them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        policy.logprobs(batch).sum().backward()
    now = most = 0
    for event in sorted(found.profiler.kineto_results.events(), key=lambda event: event.start_ns()):  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
def test_the_most_is_what_the_allocator_holds(recomputed: bool) -> None:
    batch = _forest(tokens=512, row=128, answer=0.0)

    def made(model: PreTrainedModel) -> PreTrainedModel:
        if recomputed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        return model

    sizes = {**SIZES, "num_hidden_layers": 8}
    empty = made(outline("llama", **sizes)).train()
    found = rehearse(empty, empty, method("full"), batch, Place(), accumulates=False)
    model = made(tiny.model("llama", **sizes)).train()
    model.config._attn_implementation = NAME
    held = most_held(model, Policy(model, forest=True), batch)
    assert found.kept + found.gradients + found.passing == pytest.approx(held, rel=0.1)


@pytest.mark.parametrize("kind", ["mamba", "bloom", "qwen3_next", "gpt_oss", "gemma2", "t5", "bart"])
def test_every_kind_of_architecture_is_counted(kind: str) -> None:
    found = rehearsed(outline(kind), method("full"), plant(tiny.sides_rows()[:2]))
    assert found.kept > 0


def test_bytes_for_a_person() -> None:
    assert [gigabytes(count) for count in (1.25e9, 12.34e6, 40_500, 7)] == ["1.25 GB", "12.3 MB", "40.5 KB", "7 bytes"]


def test_the_largest_component_is_found_by_its_number() -> None:
    """Not by the digits of its text, where 900 MB would be more than 2 GB."""
    memory = Memory(weights=2_000_000_000, learns=900_000_000, gradients=0, optimizer=0, activations=0, passing=0)
    assert memory.largest[1] == "2.00 GB"
    assert memory.total == 2_900_000_000 + memory.libraries
