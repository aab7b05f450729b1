"""forest == padded == one row at a time, in losses and gradients; what cannot take a forest is found out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.core.problem import Problem
from tunesmith.models.attention import NAME
from tunesmith.models.likelihood import BY_HAND, Head
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy
from tunesmith.models.probe import check_head, choose_attention
from tunesmith.objectives import next_token_loss

Gradients = dict[str, Tensor]


def grown(model: PreTrainedModel, loss: Tensor) -> tuple[float, Gradients]:
    """A loss and the gradients that it has with respect to the model's weights."""
    model.zero_grad()
    loss.backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return loss.item(), found


def assert_same(ours: tuple[float, Gradients], theirs: tuple[float, Gradients], tolerance: float) -> None:
    """Losses and every weight's gradient agree, relative to the largest number of the gradient."""
    assert ours[0] == pytest.approx(theirs[0], rel=tolerance)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in ours[1].items():
        size = theirs[1][name].abs().max().clamp_min(1e-3)
        assert (gradient - theirs[1][name]).abs().max() <= tolerance * size, name


def plain(model: PreTrainedModel) -> PreTrainedModel:
    """The model with transformers' own textbook attention."""
    model.set_attn_implementation("eager")
    return model


def precise(family: str, **options: Any) -> PreTrainedModel:
    """A tiny model in float64; one of experts in float32, since grouped products exist in no more."""
    model = tiny.model(family, **options)
    return model if "num_experts" in tiny.FAMILIES[family] else model.double()


def tolerance(model: PreTrainedModel) -> float:
    return 2e-6 if model.dtype == torch.float64 else 1e-3


@pytest.mark.parametrize("family", tiny.FAMILIES)
class TestFamilies:
    def test_the_probe_takes_it(self, family: str) -> None:
        model = tiny.model(family)
        verdict = choose_attention(model, "auto")
        assert verdict.forest, verdict.reason
        assert model.config._attn_implementation == NAME
        assert check_head(model) < 1e-5

    def test_a_forest_is_one_row_at_a_time(self, family: str) -> None:
        """In float64, where only formulas can differ; the tolerance is for the head and norms in float32."""
        ours, theirs = precise(family), plain(precise(family))
        ours.set_attn_implementation(NAME)
        rows = tiny.forest_rows()
        forest = grown(ours, next_token_loss(Policy(ours, forest=True), plant(rows)))
        singles = [plant([row]) for row in tiny.single_rows(rows)]
        alone = sum((next_token_loss(Policy(theirs, forest=False), row) for row in singles), torch.zeros(()))
        assert_same(forest, grown(theirs, alone), tolerance(ours))

    def test_a_forest_is_padded_rows(self, family: str) -> None:
        """In float32: transformers' own attention makes NaN of padding in float64."""
        ours, theirs = tiny.model(family), plain(tiny.model(family))
        ours.set_attn_implementation(NAME)
        batch = tiny.forest()
        forest = grown(ours, next_token_loss(Policy(ours, forest=True), batch))
        padded = grown(theirs, next_token_loss(Policy(theirs, forest=False), batch))
        assert_same(forest, padded, 1e-3)
        assert forest[0] == pytest.approx(padded[0], rel=1e-5)

    def test_attention_without_a_forest_is_transformers_own(self, family: str) -> None:
        """As generation needs it: rows padded on the left, and rows without padding."""
        ours, theirs = tiny.model(family), plain(tiny.model(family))
        ours.set_attn_implementation(NAME)
        tokens = torch.randint(3, 200, (2, 17))
        mask = torch.ones_like(tokens)
        mask[1, :9] = 0
        for attention_mask in (torch.ones_like(tokens), mask):
            positions = (attention_mask.cumsum(-1) - 1).clamp_min(0)
            there = attention_mask.bool()
            with torch.no_grad():
                found, expected = (
                    model(input_ids=tokens, attention_mask=attention_mask, position_ids=positions).logits[there]
                    for model in (ours, theirs)
                )
            assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3", "phi3", "mixtral"])
def test_scores_of_a_forest_are_those_of_its_rows(family: str) -> None:
    ours, theirs = precise(family, head="score"), plain(precise(family, head="score"))
    ours.set_attn_implementation(NAME)
    rows = tiny.forest_rows()
    found = Policy(ours, forest=True).scores(plant(rows))
    alone = torch.cat([Policy(theirs, forest=False).scores(plant([row])) for row in tiny.single_rows(rows)])
    assert torch.allclose(found, alone, rtol=1e-5, atol=1e-6)
    assert_same(grown(ours, found.square().sum()), grown(theirs, alone.square().sum()), tolerance(ours))


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "cohere", "gpt2"])
@pytest.mark.parametrize(("chunk", "page"), [(16, 4096), (1 << 24, 4096), (1 << 24, 8)])
@pytest.mark.parametrize("by_hand", [True, False])
def test_a_frozen_head_and_one_that_learns_pass_the_same_gradient_on(
    family: str, chunk: int, page: int, by_hand: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head's own chunks against one log_softmax over transformers' logits; where pages are small, rows apart."""
    monkeypatch.setattr("tunesmith.models.likelihood.CHUNK_NUMBERS", chunk)
    monkeypatch.setattr("tunesmith.models.likelihood.PAGE", page)
    hidden = torch.randn(40, 32, dtype=torch.float64)
    tokens, weights = torch.randint(0, 200, (40,)), torch.rand(40)
    found = []
    for learns in (True, False):
        model = tiny.model(family).double()
        head = Head.of(model)
        vars(head.layer)[BY_HAND] = by_hand
        head.layer.requires_grad_(learns)
        leaf = hidden.clone().requires_grad_()
        logprobs = head.logprobs(leaf, tokens)
        (logprobs * weights).sum().backward()
        found.append((logprobs.detach(), leaf.grad))
    logits = Head.of(tiny.model(family).double()).logits(leaf := hidden.clone().requires_grad_())
    expected = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    (expected * weights).sum().backward()
    for logprobs, slopes in found:
        assert torch.allclose(logprobs, expected.detach(), atol=1e-5)
        assert leaf.grad is not None
        assert torch.allclose(slopes, leaf.grad, atol=1e-5)


def test_logits_never_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.models.likelihood.CHUNK_NUMBERS", 16)
    model = tiny.model()
    model.set_attn_implementation(NAME)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.numel()))
    batch = tiny.forest()
    next_token_loss(Policy(model, forest=True), batch).backward()
    assert max(seen) <= 16 * tiny.vocabulary()
    assert len(batch.targets) > 32


@pytest.mark.parametrize("family", tiny.PADDED_FAMILIES)
class TestFallBack:
    def test_it_is_found_out_with_a_reason(self, family: str) -> None:
        model = tiny.model(family)
        own = model.config._attn_implementation
        verdict = choose_attention(model, "auto")
        assert not verdict.forest
        assert type(model).__name__ in verdict.reason
        assert "rows are padded" in verdict.reason
        assert model.config._attn_implementation == own

    def test_padded_rows_are_one_row_at_a_time(self, family: str) -> None:
        model = tiny.model(family)
        choose_attention(model, "auto")
        policy = Policy(model, forest=False)
        rows = tiny.forest_rows()
        padded = grown(model, next_token_loss(policy, plant(rows)))
        alone = sum((next_token_loss(policy, plant([row])) for row in tiny.single_rows(rows)), torch.zeros(()))
        assert_same(padded, grown(model, alone), 2e-3)

    def test_it_trains_on_padded_rows_and_says_so(self, family: str, tmp_path: Path) -> None:
        base = tiny.folder(tmp_path / "base", family)
        run = {"method": "full", "optimizer": {"adamw": {"lr": 3e-3}}, "train": {"epochs": 4}}
        result = tiny.trained(base, tmp_path, **run)
        notes = [event.values["text"] for event in tiny.events(result, "note")]
        assert any("takes no forest" in note and "rows are padded" in note for note in notes)
        losses = tiny.losses(result)
        assert losses[-1] < losses[0]

    def test_a_forest_that_was_asked_for_is_refused(self, family: str, tmp_path: Path) -> None:
        base = tiny.folder(tmp_path / "base", family)
        with pytest.raises(Problem, match="takes no forest"):
            tiny.trained(base, tmp_path, model={"attention": "forest"}, method="full")


@pytest.mark.parametrize("family", ["falcon_h1", "qwen3_next"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 0.1])
def test_a_hybrid_is_found_out_in_any_number_type(family: str, dtype: torch.dtype, size: float) -> None:
    """Its recurrent layers carry one tree into the next, by less than bfloat16 can tell from rounding."""
    model = tiny.model(family).to(dtype)  # type: ignore[call-arg]
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(size if weight.ndim > 1 else 1.0)
    assert not choose_attention(model, "auto").forest


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_bfloat16_takes_a_forest_where_float32_does(family: str) -> None:
    assert choose_attention(tiny.model(family).to(torch.bfloat16), "auto").forest  # type: ignore[call-arg]


def test_padded_is_what_was_asked_for() -> None:
    model = tiny.model()
    own = model.config._attn_implementation
    assert choose_attention(model, "padded").forest is False
    assert model.config._attn_implementation == own
