"""Mixture of depths: who goes through, what is computed then, and that no row hears of another."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import tiny
import torch
from made_methods import NextToken, logits, method_of, policy_of, size, t5
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.core.problem import Problem
from tunesmith.methods import trainable
from tunesmith.methods._routing import Routed, RoutedLayer
from tunesmith.models.forest import Batch
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy

FAMILIES = ("llama", "gpt2", "gpt_neox", "mixtral")
ROW = torch.tensor([[5, 9, 17, 4, 33, 21, 8, 60, 12, 7, 19, 44, 3, 28, 51, 6, 90, 11]])


def routed(family: str = "llama", *, awake: bool = True, **options: Any) -> tuple[PreTrainedModel, nn.Module]:
    """A model with routed blocks; awake: with gates and predictors as if they had learned something."""
    smooth: dict[str, Any] = {"attn_pdrop": 0, "resid_pdrop": 0, "embd_pdrop": 0} if family == "gpt2" else {}
    model = tiny.model(family, **smooth)
    torch.manual_seed(5)
    trained = method_of("mixture_of_depths", **options).apply(model)
    if awake:
        with torch.no_grad():
            for block in blocks(model):
                block.gate.fill_(0.5)
                block.predictor[2].weight.normal_(std=3.0)  # type: ignore[operator, union-attr]
    return model, trained


def blocks(model: nn.Module) -> list[Routed]:
    return [part for part in model.modules() if isinstance(part, Routed)]


def passed(model: nn.Module) -> list[Tensor]:
    """Who went through, block by block."""
    return [block.choice.passed for block in blocks(model) if block.choice is not None]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [True, False])
def test_capacity_one_is_the_base(family: str, training: bool) -> None:
    model, trained = routed(family, awake=False, capacity=1.0)
    plain = tiny.model(family).eval()
    trained.train(training)
    with torch.no_grad():
        assert torch.equal(trained(input_ids=ROW).logits, plain(input_ids=ROW).logits)
        batch = tiny.forest()
        ours = Policy(model, forest=policy_of(model, trained).forest, trained=trained).logprobs(batch)
        theirs = policy_of(plain, plain).logprobs(batch)
    assert torch.equal(ours, theirs)
    assert all(bool(choice.all()) for choice in passed(model))


@pytest.mark.parametrize("capacity", [0.1, 0.34, 0.5, 0.9])
def test_each_segment_sends_its_best_tokens_through(capacity: float) -> None:
    model, trained = routed(capacity=capacity)
    scores: list[Tensor] = []
    hidden_of = blocks(model)[0].register_forward_pre_hook(lambda _, inputs: scores.append(inputs[0]))
    batch = tiny.forest()
    policy_of(model, trained.train()).logprobs(batch)
    hidden_of.remove()
    block = blocks(model)[0]
    (choice,) = passed(model)
    hidden = scores[-1][0]
    rank = (hidden.detach() / hidden.pow(2).mean(-1, keepdim=True).add(1e-9).sqrt()) @ block.router.detach()
    for segment in batch.segments:
        part = slice(segment.start, segment.stop)
        count = math.ceil(capacity * (segment.stop - segment.start))
        best = sorted(range(segment.start, segment.stop), key=lambda place: -float(rank[place]))[:count]
        assert choice[0, part].nonzero()[:, 0].add(segment.start).tolist() == sorted(best)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_block_computes_what_it_would_with_the_others_masked_out(family: str) -> None:
    """The oracle runs the whole row, with a mask over the keys of the tokens that did not go through."""
    model, trained = routed(family, capacity=0.4)
    (block,) = blocks(model)
    seen: dict[str, Any] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        seen.update(inputs=inputs, options=options, output=output)

    block.register_forward_hook(note, with_kwargs=True)
    trained.train()
    with torch.no_grad():
        trained(input_ids=ROW, use_cache=False)
        choice = passed(model)[0][0]
        assert choice.sum() == math.ceil(0.4 * ROW.shape[1])
        hidden = seen["inputs"][0]
        length = hidden.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).tril() & choice[None, :]
        mask |= torch.eye(length, dtype=torch.bool)
        options = {name: value for name, value in seen["options"].items() if name != "past_key_values"}
        whole = block.block(hidden, **{**options, "attention_mask": mask[None, None]})
        r = (nn.functional.rms_norm(hidden, hidden.shape[-1:]) * block.router).sum(-1, keepdim=True)
        expected = torch.where(choice[None, :, None], whole + 0.5 * r.tanh() * (whole - hidden), hidden)
    assert torch.allclose(seen["output"], expected, atol=1e-5)
    assert torch.equal(seen["output"][0, ~choice], hidden[0, ~choice])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [True, False])
def test_forest_is_padded(family: str, training: bool) -> None:
    """Rows of one segment; and while training is over, trees with several answers too. Gradients as well."""
    model, trained = routed(family, capacity=0.5)
    batch = plant(tiny.single_rows(tiny.forest_rows())) if training else tiny.forest()
    assert policy_of(model, trained).forest
    found: list[tuple[Tensor, dict[str, Tensor]]] = []
    for forest in (True, False):
        trained.train(training).zero_grad()
        policy = Policy(model, forest=forest, trained=trained)
        loss, _ = method_of("mixture_of_depths", capacity=0.5).loss(policy, batch, NextToken())
        loss.backward()
        grads = {name: weight.grad for name, weight in trainable(trained).items() if weight.grad is not None}
        found.append((loss.detach(), grads))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-5)
    assert found[0][1].keys() == found[1][1].keys()
    for name, grad in found[0][1].items():
        assert torch.allclose(grad, found[1][1][name], rtol=1e-3, atol=1e-4 * size(grad) + 1e-6), name


@pytest.mark.parametrize("forest", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_no_row_hears_of_another(forest: bool, training: bool) -> None:
    """Other tokens in the first row leave the others' numbers as they were, bit for bit."""
    model, trained = routed(capacity=0.5)
    policy_of(model, trained)
    rows = tiny.single_rows(tiny.forest_rows())
    batch, first = plant(rows), len(rows[0].trunk)
    tokens = batch.tokens.clone()
    tokens[:first] = tokens[:first].flip(0)
    changed = Batch(**{**vars_of(batch), "tokens": tokens})
    policy = Policy(model, forest=forest, trained=trained.train(training))
    with torch.no_grad():
        ours, theirs = policy.logprobs(batch), policy.logprobs(changed)
    beside = batch.targets.row > 0
    assert torch.equal(ours[beside], theirs[beside])
    assert not torch.equal(ours, theirs)


def test_answers_to_one_prompt_do_not_compete() -> None:
    model, trained = routed(capacity=0.5)
    batch = tiny.pairs()
    policy = policy_of(model, trained.train())
    tokens = batch.tokens.clone()
    chosen = batch.segments[batch.leaves[0]]
    tokens[chosen.start : chosen.stop] = tokens[chosen.start : chosen.stop].flip(0)
    with torch.no_grad():
        ours = policy.logprobs(batch)
        theirs = policy.logprobs(Batch(**{**vars_of(batch), "tokens": tokens}))
    rest = batch.targets.row != 0
    assert torch.equal(ours[rest], theirs[rest])


def vars_of(batch: Batch) -> dict[str, Any]:
    return {name: getattr(batch, name) for name in Batch.__dataclass_fields__}


class TestGeneration:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("cuts", [range(19), (0, 7, 8, 18), (0, 17, 18)])
    def test_step_by_step_is_one_forward(self, family: str, cuts: Any) -> None:
        model, trained = routed(family)
        trained.eval()
        with torch.no_grad():
            whole = trained(input_ids=ROW, use_cache=False).logits
            shares = [float(choice.float().mean()) for choice in passed(model)]
            assert all(0 < share < 1 for share in shares)
            cache: Any = None
            parts: list[Tensor] = []
            for start, stop in pairwise(cuts):
                out = trained(input_ids=ROW[:, start:stop], past_key_values=cache, use_cache=True)
                cache, parts = out.past_key_values, [*parts, out.logits]
        assert size(torch.cat(parts, dim=1) - whole) <= 1e-5 * size(whole)
        layer = cache.layers[blocks(model)[0].number]
        assert isinstance(layer, RoutedLayer)
        assert layer.keys.shape[2] == round(shares[0] * ROW.shape[1]) == int((layer.places >= 0).sum())
        assert cache.get_seq_length() == ROW.shape[1]

    @pytest.mark.parametrize("family", ["llama", "gpt2"])
    def test_prompts_beside_each_other_are_prompts_alone(self, family: str) -> None:
        _, trained = routed(family)
        trained.eval()
        options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        prompts = [ROW[:, :9], ROW[:, 4:8], ROW[:, 2:16]]
        alone = [trained.generate(input_ids=p, **options)[0, p.shape[1] :] for p in prompts]  # type: ignore[operator]
        longest = max(prompt.shape[1] for prompt in prompts)
        rows = [nn.functional.pad(prompt[0], (longest - prompt.shape[1], 0)) for prompt in prompts]
        mask = [nn.functional.pad(torch.ones_like(prompt[0]), (longest - prompt.shape[1], 0)) for prompt in prompts]
        beside = trained.generate(input_ids=torch.stack(rows), attention_mask=torch.stack(mask), **options)  # type: ignore[operator]
        assert torch.equal(beside[:, longest:], torch.stack(alone))
        without = [trained.generate(input_ids=p, use_cache=False, **options) for p in prompts]  # type: ignore[operator]
        assert all(torch.equal(w[0, p.shape[1] :], a) for w, p, a in zip(without, prompts, alone, strict=True))

    def test_tokens_are_taken_back(self) -> None:
        _, trained = routed()
        trained.eval()
        with torch.no_grad():
            whole = trained(input_ids=ROW, use_cache=False).logits
            cache = trained(input_ids=torch.cat([ROW[:, :9], ROW[:, :5]], dim=1), use_cache=True).past_key_values
            cache.crop(-5)
            rest = trained(input_ids=ROW[:, 9:], past_key_values=cache, use_cache=True).logits
        assert size(rest - whole[:, 9:]) <= 1e-5 * size(whole)

    def test_rows_of_a_cache_are_chosen_repeated_and_put_in_order(self) -> None:
        _, trained = routed()
        trained.eval()
        rows = torch.cat([ROW[:, :8], ROW[:, 8:16]])
        with torch.no_grad():
            expected = trained(input_ids=rows, use_cache=False).logits[:, -3:]
            for act, order in (
                (lambda cache: cache.reorder_cache(torch.tensor([1, 0])), [1, 0]),
                (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
                (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1]),
            ):
                cache = trained(input_ids=rows[:, :-3], use_cache=True).past_key_values
                act(cache)
                found = trained(input_ids=rows[order, -3:], past_key_values=cache, use_cache=True).logits
                assert size(found - expected[order]) <= 1e-5 * size(expected)

    def test_before_it_has_learned_everything_goes_through(self) -> None:
        model, trained = routed(awake=False, capacity=0.3)
        plain = tiny.model()
        assert torch.equal(logits(trained), logits(plain))
        assert all(bool(choice.all()) for choice in passed(model))


class TestPredictor:
    def test_its_loss_moves_nothing_else(self) -> None:
        found: list[dict[str, Tensor]] = []
        for weight in (0.01, 7.0):
            method = method_of("mixture_of_depths", predictor_weight=weight, learns="all")
            model, trained = routed(capacity=0.5, learns="all")
            method.loss(policy_of(model, trained.train()), tiny.forest(), NextToken())[0].backward()
            found.append({name: part.grad for name, part in trainable(trained).items() if part.grad is not None})
        for name, grad in found[0].items():
            ratio = 700.0 if ".predictor." in name else 1.0
            assert torch.allclose(grad * ratio, found[1][name], rtol=1e-3, atol=1e-5), name
        assert any(".predictor." in name for name in found[0])

    def test_its_loss_is_the_cross_entropy_of_the_choices(self) -> None:
        method = method_of("mixture_of_depths", capacity=0.5, predictor_weight=1.0)
        model, trained = routed(capacity=0.5)
        policy = policy_of(model, trained.train())
        total, figures = method.loss(policy, tiny.forest(), NextToken())
        plain, _ = NextToken().loss(policy, tiny.forest())
        (choice,) = [block.choice for block in blocks(model)]
        assert choice is not None
        share = torch.sigmoid(choice.foretold)
        expected = -torch.where(choice.passed, share.log(), (1 - share).log()).sum()
        assert torch.allclose(total - plain, expected, rtol=1e-4)
        count = NextToken().count(tiny.forest())
        assert float(figures["passed"]) / count == pytest.approx(float(choice.passed.float().mean()))
        right = ((choice.foretold >= 0) == choice.passed).float().mean()
        assert float(figures["foretold"]) / count == pytest.approx(float(right))

    def test_it_learns_to_foretell(self) -> None:
        method = method_of("mixture_of_depths", capacity=0.3, learns="routers", predictor_weight=1.0)
        model, trained = routed(capacity=0.3, learns="routers", awake=False)
        policy = policy_of(model, trained.train())
        optimizer = torch.optim.AdamW(method.groups(trained, 3e-3))
        shares = []
        for _ in range(60):
            optimizer.zero_grad()
            loss, figures = method.loss(policy, tiny.forest(), NextToken())
            loss.backward()
            optimizer.step()
            shares.append(float(figures["foretold"]) / NextToken().count(tiny.forest()))
        assert shares[0] < 0.5
        assert shares[-1] > 0.85
        trained.eval()
        _, figures = method.loss(policy, tiny.forest(), NextToken())
        assert "foretold" not in figures
        assert float(figures["passed"]) / NextToken().count(tiny.forest()) < 0.6


class TestOptions:
    @pytest.mark.parametrize(
        ("learns", "words"),
        [("routers", {"router", "gate", "predictor"}), ("blocks", {"router", "gate", "predictor", "block"})],
    )
    def test_what_learns(self, learns: str, words: set[str]) -> None:
        _, trained = routed(learns=learns)
        names = [name.split("layers.1.")[1] for name in trainable(trained)]
        assert {name.partition(".")[0] for name in names} == words

    def test_all_learns(self) -> None:
        _, trained = routed(learns="all")
        assert all(weight.requires_grad for weight in trained.parameters())

    def test_every_other_block_is_routed_or_those_that_are_named(self) -> None:
        for options, expected in (({}, [1, 3, 5]), ({"blocks": [5, 2, 2]}, [2, 5])):
            model = tiny.model(num_hidden_layers=6)
            method_of("mixture_of_depths", **options).apply(model)
            assert [block.number for block in blocks(model)] == expected

    @pytest.mark.parametrize(
        ("family", "options", "words"),
        [
            ("llama", {"blocks": [0]}, r"names block 0, .* Name some of 1, 2"),
            ("llama", {"blocks": [1, 9]}, r"names block 9, .* Name some of 1, 2"),
            ("mistral", {}, "must have full attention"),
            ("bloom", {}, "called with alibi"),
            ("mamba", {}, "cache_params"),
        ],
    )
    def test_refuses_blocks_that_cannot_be_routed(self, family: str, options: dict[str, Any], words: str) -> None:
        with pytest.raises(Problem, match=words):
            method_of("mixture_of_depths", **options).apply(tiny.model(family))

    def test_refuses_an_encoder_and_decoder(self) -> None:
        with pytest.raises(Problem, match="an encoder and a decoder"):
            method_of("mixture_of_depths").apply(t5())

    def test_full_attention_between_sliding_windows_is_routed(self) -> None:
        kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
        model = tiny.model("gemma3_text", num_hidden_layers=4, layer_types=kinds)
        trained = method_of("mixture_of_depths").apply(model).eval()
        (block,) = blocks(model)
        assert block.number == 3
        with torch.no_grad():
            block.predictor[2].weight.normal_(std=3.0)  # type: ignore[operator, union-attr]
            whole = trained(input_ids=ROW, use_cache=False).logits
            cache, parts = None, []
            for place in range(ROW.shape[1]):
                out = trained(input_ids=ROW[:, place : place + 1], past_key_values=cache, use_cache=True)
                cache, parts = out.past_key_values, [*parts, out.logits]
        assert size(torch.cat(parts, dim=1) - whole) <= 1e-5 * size(whole)
