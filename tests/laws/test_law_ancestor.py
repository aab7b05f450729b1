"""Under a soft prompt: forest == padded == one row at a time, in losses and in the gradients of the learned vectors."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.core.plugins import build
from tunesmith.methods import Method, trainable
from tunesmith.models.ancestor import ancestor_of
from tunesmith.models.attention import NAME
from tunesmith.models.forest import Batch
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy
from tunesmith.objectives import next_token_loss

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt": ("prompt", {"tokens": 5}),
    "p_tuning-mlp": ("p_tuning", {"tokens": 5, "hidden": 16}),
    "p_tuning-lstm": ("p_tuning", {"tokens": 5, "hidden": 8, "encoder": "lstm"}),
    "prefix-mlp": ("prefix", {"tokens": 5, "hidden": 16}),
    "prefix-free": ("prefix", {"tokens": 5, "projection": "none"}),
    "p_tuning_v2": ("p_tuning_v2", {"tokens": 9}),
}
FAMILIES = ("llama", "gpt2", "qwen3", "gemma2", "mixtral")
"""Rotary and learned positions, normed queries, windows of 6 (less than the vectors of p_tuning_v2), caps, experts."""
PADDED = [("bloom", {"num_key_value_heads": 4}), ("gpt_oss", {})]
"""Position biases and attention sinks; Bloom has as many keys as queries whatever the tiny configuration says."""
RECURRENT = ("mamba", "qwen3_next")


def method_of(kind: str) -> Method:
    name, options = KINDS[kind]
    found = build("method", {name: options})
    assert isinstance(found, Method)
    return found


def under(model: PreTrainedModel, kind: str) -> nn.Module:
    """The model with a soft prompt on it, the same each time."""
    torch.manual_seed(3)
    return method_of(kind).apply(model)


def precise(family: str, kind: str, attention: str, **options: Any) -> tuple[PreTrainedModel, nn.Module]:
    """Model and soft prompt in float64; one of experts in float32, since grouped products exist in no more."""
    model = tiny.model(family, **options)
    trained = under(model, kind)
    if "num_experts" not in tiny.FAMILIES[family]:
        trained.double()
    model.set_attn_implementation(attention)
    return model, trained


def grown(trained: nn.Module, loss: Tensor) -> tuple[float, dict[str, Tensor]]:
    """A loss and the gradients of what learns."""
    weights = trainable(trained)
    found = torch.autograd.grad(loss, list(weights.values()))
    return loss.item(), dict(zip(weights, found, strict=True))


def assert_same(
    ours: tuple[float, dict[str, Tensor]], theirs: tuple[float, dict[str, Tensor]], tolerance: float
) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=tolerance)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in ours[1].items():
        size = theirs[1][name].abs().max()
        assert size > 1e-4, name
        assert (gradient - theirs[1][name]).abs().max() <= tolerance * size, name


def alone(policy: Policy) -> Tensor:
    """The loss of the rows of the forest, each computed by itself."""
    singles = [plant([row]) for row in tiny.single_rows(tiny.forest_rows())]
    return sum((next_token_loss(policy, row) for row in singles), torch.zeros(()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
class TestFamilies:
    def test_a_forest_is_one_row_at_a_time(self, kind: str, family: str) -> None:
        model, trained = precise(family, kind, NAME)
        forest = grown(trained, next_token_loss(Policy(model, forest=True, trained=trained), tiny.forest()))
        other, theirs = precise(family, kind, "eager")
        single = grown(theirs, alone(Policy(other, forest=False, trained=theirs)))
        assert_same(forest, single, 2e-6 if model.dtype == torch.float64 else 1e-3)

    def test_a_forest_is_padded_rows(self, kind: str, family: str) -> None:
        """In float32: transformers' own attention makes NaN of padding in float64."""
        found = []
        for attention, forest in ((NAME, True), ("eager", False)):
            model = tiny.model(family)
            trained = under(model, kind)
            model.set_attn_implementation(attention)
            policy = Policy(model, forest=forest, trained=trained)
            found.append(grown(trained, next_token_loss(policy, tiny.forest())))
        assert_same(found[0], found[1], 1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("kind", KINDS)
def test_off_is_the_untouched_model_bit_for_bit(kind: str, family: str) -> None:
    model = tiny.model(family)
    model.set_attn_implementation(NAME)
    batch = tiny.forest()
    with torch.no_grad():
        before = Policy(model, forest=True).logprobs(batch)
        method = method_of(kind)
        trained = method.apply(model).eval()
        learned = set(trainable(trained))
        policy = Policy(model, forest=True, trained=trained, off=lambda: method.off(trained))
        under_it = policy.logprobs(batch)
        with method.off(trained):
            assert torch.equal(policy.logprobs(batch), before)
        assert torch.equal(policy.reference_logprobs(batch), before)
        assert torch.equal(policy.logprobs(batch), under_it)
    assert (under_it - before).abs().max() > 1e-3
    assert set(trainable(trained)) == learned


@pytest.mark.parametrize(("family", "options"), PADDED)
@pytest.mark.parametrize("kind", KINDS)
def test_padded_rows_are_one_row_at_a_time_where_there_is_no_forest(
    kind: str, family: str, options: dict[str, Any]
) -> None:
    model = tiny.model(family, **options)
    trained = under(model, kind)
    policy = Policy(model, forest=False, trained=trained)
    padded = grown(trained, next_token_loss(policy, tiny.forest()))
    assert_same(padded, grown(trained, alone(policy)), 2e-3)


@pytest.mark.parametrize("family", RECURRENT)
@pytest.mark.parametrize("kind", ["prompt", "p_tuning-lstm"])
def test_vectors_stand_before_the_rows_of_state_spaces(kind: str, family: str) -> None:
    model = tiny.model(family)
    trained = under(model, kind)
    policy = Policy(model, forest=False, trained=trained)
    padded = grown(trained, next_token_loss(policy, tiny.forest()))
    assert_same(padded, grown(trained, alone(policy)), 2e-3)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_a_forest_are_those_of_its_rows(kind: str, family: str) -> None:
    model, trained = precise(family, kind, NAME, head="score")
    other, theirs = precise(family, kind, "eager", head="score")
    theirs.load_state_dict(trained.state_dict())
    found = Policy(model, forest=True, trained=trained).scores(tiny.forest())
    rows = [plant([row]) for row in tiny.single_rows(tiny.forest_rows())]
    single = torch.cat([Policy(other, forest=False, trained=theirs).scores(row) for row in rows])
    assert torch.allclose(found, single, rtol=1e-5, atol=1e-6)
    assert_same(grown(trained, found.square().sum()), grown(theirs, single.square().sum()), 2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_activations_give_the_same_gradients(kind: str) -> None:
    """Layers that are recomputed lose what came to them as a cache; an ancestor is none."""
    found = []
    for checkpointing in (False, True):
        model = tiny.model("qwen3")
        trained = under(model, kind)
        model.set_attn_implementation(NAME)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        trained.train()
        policy = Policy(model, forest=True, trained=trained)
        found.append(grown(trained, next_token_loss(policy, tiny.forest())))
    assert found[0][0] == found[1][0]
    for name, gradient in found[0][1].items():
        assert torch.allclose(gradient, found[1][1][name], rtol=1e-6), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("forest", [True, False])
def test_bfloat16_is_near_float32(kind: str, forest: bool) -> None:
    """Weights in bfloat16, and products in it by autocast; what learns stays float32."""
    model = tiny.model()
    trained = under(model, kind)
    if forest:
        model.set_attn_implementation(NAME)
    batch = tiny.forest()
    expected = Policy(model, forest=forest, trained=trained).hidden(batch, batch.targets.source, batch.targets.row)
    policy = Policy(model, forest=forest, trained=trained, autocast=torch.bfloat16)
    with policy._precision():
        cast = policy.hidden(batch, batch.targets.source, batch.targets.row)
    model.to(torch.bfloat16)  # type: ignore[call-arg]
    assert {weight.dtype for weight in trainable(trained).values()} == {torch.float32}
    with policy._precision():
        whole = policy.hidden(batch, batch.targets.source, batch.targets.row)
    size = expected.abs().max()
    assert (cast - expected).abs().max() <= 0.2 * size
    assert (whole - expected).abs().mean() <= 0.05 * size
    _, gradients = grown(trained, next_token_loss(policy, batch))
    assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in gradients.values())


@pytest.mark.parametrize("forest", [True, False])
def test_noise_meets_the_text_and_not_the_vectors(forest: bool) -> None:
    model = tiny.model()
    trained = under(model, "prompt").train()
    model.set_attn_implementation(NAME)
    seen: list[Tensor] = []
    model.model.layers[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    for alpha in (0.0, 5.0):
        policy = Policy(model, forest=forest, trained=trained, neftune=alpha)
        next_token_loss(policy, tiny.forest())
    still, noisy = seen
    n = ancestor_of(trained).length
    assert torch.equal(still[:, :n], noisy[:, :n])
    assert (still[:, n:] != noisy[:, n:]).float().mean() > 0.99


def test_a_window_passes_the_ancestor_as_it_passes_any_token() -> None:
    """In one layer with a window of 6, a token that stands six places on sees nothing of 5 vectors before the text."""
    model = tiny.model("mistral", num_hidden_layers=1, sliding_window=6)
    model.set_attn_implementation(NAME)
    trained = under(model, "prefix-free")
    policy = Policy(model, forest=True, trained=trained)
    batch: Batch = plant(tiny.forest_rows()[4:])
    states = policy.hidden(batch, torch.arange(len(batch)), torch.zeros(len(batch), dtype=torch.long))
    (gradient,) = torch.autograd.grad(states[5:].square().sum(), list(trainable(trained).values()))
    assert gradient.abs().max() == 0
    (gradient,) = torch.autograd.grad(
        policy.hidden(batch, torch.tensor([4]), torch.tensor([0])).square().sum(), list(trainable(trained).values())
    )
    assert (gradient.abs().amax(dim=1) > 0).tolist() == [False, False, False, False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_does_not_depend_on_its_cutting(kind: str) -> None:
    model, trained = precise("llama", kind, NAME)
    policy = Policy(model, forest=True, trained=trained)
    rows = tiny.forest_rows()
    whole = grown(trained, next_token_loss(policy, plant(rows)))
    parts = sum((next_token_loss(policy, plant([row])) for row in rows), torch.zeros(()))
    assert_same(grown(trained, parts), whole, 2e-6)
