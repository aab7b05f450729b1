"""Bottleneck adapters against the formula, written out; and on architectures of all shapes."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from made_methods import TOKENS, logits, method_of, policy_of, shake, size, t5
from torch import Tensor, nn

from tunesmith.core.problem import Problem
from tunesmith.methods import trainable
from tunesmith.methods._own import Part
from tunesmith.models.policy import Policy

CURVES = {"relu": nn.ReLU(), "gelu": nn.GELU(), "silu": nn.SiLU(), "tanh": nn.Tanh()}
FAMILIES = (
    "llama",
    "qwen3",
    "gemma2",
    "phi3",
    "gpt2",
    "gpt_neox",
    "olmo2",
    "cohere",
    "mixtral",
    "gpt_oss",
    "falcon_h1",
)


def adapter(host: nn.Module, hidden: Tensor, curve: str, scale: float) -> Tensor:
    """The formula, from the saved matrices."""
    down, up = host.bottleneck.down, host.bottleneck.up  # type: ignore[union-attr]
    middle = CURVES[curve](hidden @ down.weight.T + down.bias)  # type: ignore[union-attr, operator]
    return scale * (middle @ up.weight.T + up.bias)  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("place", ["houlsby", "pfeiffer", "parallel"])
@pytest.mark.parametrize(("curve", "scale"), [("relu", 1.0), ("gelu", 0.5), ("silu", 4.0), ("tanh", 2.0)])
def test_computes_the_formula(place: str, curve: str, scale: float) -> None:
    """A Llama written out block by block; `forward` of its parts knows nothing of what was put on them."""
    model: Any = tiny.model()
    trained = method_of("bottleneck", place=place, curve=curve, scale=scale, size=6).apply(model).eval()
    shake(trained, 0.5)
    with torch.no_grad():
        hidden = model.model.embed_tokens(TOKENS)
        turns = model.model.rotary_emb(hidden, torch.arange(TOKENS.shape[1])[None])
        for block in model.model.layers:
            found = block.self_attn.forward(
                block.input_layernorm(hidden), position_embeddings=turns, attention_mask=None
            )
            attended = found[0]
            if place == "houlsby":
                attended = attended + adapter(block.self_attn, attended, curve, scale)
            hidden = hidden + attended
            before = block.post_attention_layernorm(hidden)
            after = block.mlp.forward(before)
            hidden = hidden + after + adapter(block.mlp, before if place == "parallel" else after, curve, scale)
        expected = model.lm_head(model.model.norm(hidden))
    assert size(logits(trained) - expected) <= 1e-5 * size(expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("place", ["houlsby", "pfeiffer", "parallel"])
def test_every_block_gets_its_adapters(family: str, place: str) -> None:
    model = tiny.model(family)
    before = logits(model)
    method = method_of("bottleneck", place=place, size=5)
    trained = method.apply(model)
    blocks = model.config.num_hidden_layers
    parts = [part for part in trained.modules() if isinstance(part, Part)]
    assert len(parts) == blocks * (2 if place == "houlsby" else 1)
    assert sum(weight.numel() for weight in trainable(trained).values()) == len(parts) * (2 * 5 * 32 + 5 + 32)
    assert torch.equal(logits(trained), before)
    shake(trained, 0.5)
    assert size(logits(trained) - before) > 1e-4
    with method.off(trained):
        assert torch.equal(logits(trained), before)


@pytest.mark.parametrize("place", ["houlsby", "pfeiffer", "parallel"])
def test_an_encoder_and_decoder_gets_them_in_both(place: str) -> None:
    model = t5()
    options = {"input_ids": TOKENS, "decoder_input_ids": TOKENS[:, :7], "use_cache": False}
    with torch.no_grad():
        before = model(**options).logits
        method = method_of("bottleneck", place=place)
        trained = method.apply(model).eval()
        assert size(trained(**options).logits - before) <= 1e-5 * size(before)
        names = {name.partition(".bottleneck")[0] for name in trainable(trained)}
        assert sum("encoder.block" in name for name in names) == (4 if place == "houlsby" else 2)
        assert sum("decoder.block" in name for name in names) == (6 if place == "houlsby" else 2)
        shake(trained, 0.5)
        assert size(trained(**options).logits - before) > 1e-3
        with method.off(trained):
            assert size(trained(**options).logits - before) <= 1e-5 * size(before)


def test_forest_is_padded_and_generation_with_a_cache_is_without() -> None:
    model = tiny.model()
    trained = method_of("bottleneck", place="houlsby").apply(model).eval()
    shake(trained, 0.3)
    policy_of(model, trained)
    with torch.no_grad():
        ours, theirs = (Policy(model, forest=how, trained=trained).logprobs(tiny.forest()) for how in (True, False))
        assert size(ours - theirs) <= 1e-5 * size(ours)
        answers = [
            trained.generate(input_ids=TOKENS, max_new_tokens=8, do_sample=False, use_cache=cache, pad_token_id=0)  # type: ignore[operator]
            for cache in (True, False)
        ]
    assert torch.equal(*answers)


def test_dropout_is_for_training_only() -> None:
    trained = method_of("bottleneck", dropout=0.5).apply(tiny.model())
    shake(trained, 0.5)
    assert torch.equal(logits(trained), logits(trained))
    trained.train()
    first, second = (trained(input_ids=TOKENS, use_cache=False).logits for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("family", "words"),
    [("mamba", "no feed-forward part of its own"), ("bloom", "the way around BloomAttention inside of it")],
)
def test_refuses(family: str, words: str) -> None:
    with pytest.raises(Problem, match=words):
        method_of("bottleneck", place="houlsby").apply(tiny.model(family))
