"""Fast pieces == the model's and the method's own, in losses and gradients, over families, methods and moments."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, get_args

import pytest
import tiny
import torch
from made_methods import method_of
from torch import Tensor, nn

from tunesmith.core.problem import Problem
from tunesmith.core.run import Lever
from tunesmith.models.attention import NAME
from tunesmith.models.fast import LEVERS, described, quicken, release
from tunesmith.models.likelihood import Head
from tunesmith.models.policy import Policy
from tunesmith.objectives import next_token_loss

CPU = torch.device("cpu")
GATED = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "olmo2", "granite", "cohere")
"""Families whose MLPs have a gate; the others' levers take what they can."""
Found = tuple[float, dict[str, Tensor]]


def awake(trained: nn.Module) -> nn.Module:
    """LoRA's second matrix starts at zero, where half of its gradients are; here it does not."""
    draw = torch.Generator().manual_seed(3)
    for name, weight in trained.named_parameters():
        if "lora_B" in name:
            weight.data.copy_(torch.randn(weight.shape, generator=draw) * 0.2)
    return trained


def learned(family: str, method: str, fast: str | tuple[str, ...], *, precise: bool = True, **options: Any) -> Found:
    """The loss of a forest and the gradient of all that learns."""
    model = tiny.model(family)
    precise = precise and "num_experts" not in {**tiny.FAMILIES, **tiny.PADDED_FAMILIES}[family]
    model = model.double() if precise else model
    trained = awake(method_of(method, **options).apply(model))
    trained = trained.double() if precise else trained
    quicken(trained, fast, CPU)
    return gradients(model, trained)


def policy_of(model: Any, trained: nn.Module) -> Policy:
    forest = model.config.model_type in tiny.FAMILIES
    if forest:
        model.set_attn_implementation(NAME)
    return Policy(model, forest=forest, trained=trained)


def gradients(model: Any, trained: nn.Module) -> Found:
    trained.train()
    trained.zero_grad()
    torch.manual_seed(5)
    loss = next_token_loss(policy_of(model, trained), tiny.forest())
    loss.backward()
    return loss.item(), {name: w.grad for name, w in trained.named_parameters() if w.grad is not None}


def assert_same(ours: Found, theirs: Found, tolerance: float) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=tolerance)
    assert ours[1].keys() == theirs[1].keys()
    largest = max(float(slope.abs().max()) for slope in theirs[1].values())
    for name, slope in ours[1].items():
        size = max(float(theirs[1][name].abs().max()), 1e-3 * largest)
        assert float((slope - theirs[1][name]).abs().max()) <= tolerance * size, name


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.PADDED_FAMILIES])
def test_all_levers_learn_what_the_plain_model_learns(family: str, method: str) -> None:
    """In float64, where only formulas differ; some families hold states in float32 themselves."""
    if method == "lora" and family in ("mamba", "falcon_h1"):
        pytest.skip("PEFT refuses LoRA on all linear layers of state spaces")
    assert_same(learned(family, method, "auto"), learned(family, method, "off"), 2e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.PADDED_FAMILIES])
def test_compiled_pieces_learn_what_the_plain_model_learns(family: str) -> None:
    """All weights learn, for all families; what is compiled for one serves the next."""
    assert_same(learned(family, "full", "long"), learned(family, "full", "off"), 2e-4)


@pytest.mark.parametrize("lever", [name for name, kinds in LEVERS.items() if "cpu" in kinds])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_each_lever_alone(lever: str, method: str) -> None:
    if (lever, method) == ("lora", "full"):
        pytest.skip("nothing has LoRA beside it where all weights learn")
    assert_same(learned("llama", method, (lever,)), learned("llama", method, "off"), 1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "gpt2"])
@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_weighted_sum_of_logprobs(family: str, learns: bool, smoothing: float) -> None:
    """By hand == by autograd over `logprobs`, for a head that is frozen or learns, also chunk by chunk."""
    model = tiny.model(family).double()
    model.requires_grad_(learns)
    hidden = torch.randn(50, 32, dtype=torch.float64)
    tokens, weights = torch.randint(0, 200, (50,)), torch.rand(50)
    found: list[tuple[Tensor, Tensor, Tensor | None]] = []
    for chosen in ("off", ("head",)):
        quicken(model, chosen, CPU)
        leaf = hidden.clone().requires_grad_()
        total = Head.of(model, smoothing).total(leaf, tokens, weights)
        model.zero_grad()
        (3 * total).backward()
        assert leaf.grad is not None
        layer = model.get_output_embeddings()
        assert layer is not None
        weight = layer.weight.grad
        found.append((total.detach(), leaf.grad, None if weight is None else weight.clone()))
    (plain, slope, weight), (fast, fast_slope, fast_weight) = found
    assert float(fast) == pytest.approx(float(plain), rel=1e-6)
    assert torch.allclose(fast_slope, slope, rtol=1e-4, atol=1e-7)
    assert (weight is None) == (fast_weight is None) == (not learns)
    if weight is not None and fast_weight is not None:
        assert torch.allclose(fast_weight, weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", GATED)
def test_gated_families_are_taken_whole(family: str) -> None:
    model = tiny.model(family)
    trained = method_of("lora").apply(model)
    took = quicken(trained, "auto", CPU)
    layers = model.config.num_hidden_layers
    assert took["mlp"] == layers
    assert took["lora"] == 7 * layers
    assert took["rotary"] in (layers, 0)
    assert took["norm"] > 0 or family == "cohere"  # Cohere's norms subtract a mean


@pytest.mark.parametrize("start", ["pissa", "zero"])
def test_variants_of_lora(start: str) -> None:
    """DoRA is PEFT's own affair; what starts from the base's directions is plain LoRA on another base."""
    options: dict[str, Any] = {"start": start, "form": "dora" if start == "zero" else "plain"}
    ours, theirs = (learned("llama", "lora", fast, precise=False, **options) for fast in ("auto", "off"))
    assert_same(ours, theirs, 1e-3)


class TestMoments:
    """What a lever meets while a run goes on."""

    @pytest.fixture
    def both(self) -> tuple[Any, Any]:
        model = tiny.model("llama")
        return model, awake(method_of("lora", dropout=0.3).apply(model))

    def states(self, both: tuple[Any, Any], **ways: Any) -> Tensor:
        torch.manual_seed(1)
        return policy_of(*both).states(tiny.forest()).detach()

    def assert_alike(self, both: tuple[Any, Any], context: Any = nullcontext) -> None:
        with context():
            quicken(both[1], "off", CPU)
            plain = self.states(both)
            quicken(both[1], "auto", CPU)
            assert torch.allclose(self.states(both), plain, atol=1e-5)

    def test_dropout_that_does_something(self, both: tuple[Any, Any]) -> None:
        both[1].train()
        self.assert_alike(both)

    def test_an_adapter_switched_off(self, both: tuple[Any, Any]) -> None:
        both[1].eval()
        with_it = self.states(both)
        self.assert_alike(both, both[1].disable_adapter)
        with both[1].disable_adapter():
            assert not torch.allclose(self.states(both), with_it, atol=1e-3)

    def test_somebody_listening_to_an_inner_layer(self, both: tuple[Any, Any]) -> None:
        quicken(both[1], "auto", CPU)
        both[1].eval()
        heard: list[Any] = []
        model = both[0]
        handle = model.model.layers[0].mlp.gate_proj.register_forward_hook(lambda *found: heard.append(found))
        self.states(both)
        handle.remove()
        assert len(heard) == 1
        self.states(both)
        assert len(heard) == 1

    def test_products_in_bfloat16(self, both: tuple[Any, Any]) -> None:
        """Under autocast, over a base of its type: the change is rounded as PEFT's is, to a few units."""
        trained = both[1]
        trained.eval()
        for name, weight in trained.named_parameters():
            if "lora" not in name:
                weight.data = weight.data.bfloat16()

        @contextmanager
        def typed() -> Iterator[None]:
            with torch.autocast("cpu", torch.bfloat16):
                yield

        with typed():
            quicken(trained, "off", CPU)
            plain = self.states(both).float()
            quicken(trained, ("lora", "mlp"), CPU)
            fast = self.states(both).float()
        assert float((fast - plain).norm() / plain.norm()) < 0.02
        assert not torch.equal(fast, plain)

    def test_saved_and_folded_as_ever(self, both: tuple[Any, Any]) -> None:
        trained = both[1]
        trained.eval()
        before = set(trained.state_dict())
        quicken(trained, "auto", CPU)
        assert set(trained.state_dict()) == before
        with_it = self.states(both)
        folded = method_of("lora").fold(trained)
        assert torch.allclose(self.states((folded, folded)), with_it, atol=1e-4)


def test_released_it_is_the_class_own() -> None:
    model = tiny.model("llama")
    trained = method_of("lora").apply(model)
    quicken(trained, "auto", CPU)
    assert any("forward" in vars(part) for part in trained.modules())
    release(trained)
    assert not any("forward" in vars(part) for part in trained.modules())


def test_a_module_that_only_looks_alike_is_left_alone() -> None:
    model = tiny.model("llama")
    mlp = model.model.layers[0].mlp

    class Clamped(type(mlp)):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).clamp(-0.01, 0.01)

    mlp.__class__ = Clamped
    assert quicken(model, ("mlp",), CPU) == {"mlp": model.config.num_hidden_layers - 1}


def test_a_lever_that_takes_nothing_is_refused_by_name() -> None:
    model = tiny.model("gpt2")
    took = quicken(model, ("mlp",), CPU)
    with pytest.raises(Problem, match="mlp finds nothing"):
        described(("mlp",), took)
    assert described("auto", quicken(model, "auto", CPU)) == "computed faster: head 1 (model.fast)"
    assert described("auto", {"mlp": 0}) == ""


def test_the_option_names_the_levers() -> None:
    assert set(get_args(Lever)) == set(LEVERS)


def test_yaml_reads_off_as_false() -> None:
    from tunesmith.core.run import ModelSpec

    assert ModelSpec.model_validate({"path": "x", "fast": False}).fast == "off"
    assert ModelSpec.model_validate({"path": "x", "fast": "norm"}).fast == ("norm",)
