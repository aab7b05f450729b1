"""Tiny random models made in code, alone and as folders, for what generates and measures."""

from __future__ import annotations

from pathlib import Path

import torch
from made_codecs import codec, oracle
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.data.tokenizer import Codec
from tunesmith.evaluate.scoring import Scorer
from tunesmith.models.policy import Policy
from tunesmith.models.probe import choose_attention

CONTEXT = 256


def tiny_codec() -> Codec:
    return codec("chatml")


def tiny_model(seed: int = 0, context: int = CONTEXT) -> LlamaForCausalLM:
    """A random Llama of two layers, with weights large enough that its choices are clear."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tiny_codec().vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval()


def tiny_folder(folder: Path, seed: int = 0) -> Path:
    """The tiny model with its tokenizer as transformers saves them."""
    tiny_model(seed).save_pretrained(folder)
    oracle("chatml").save_pretrained(folder)
    return folder


def scorer(model: LlamaForCausalLM, *, forest: bool = True, budget: int = 300) -> Scorer:
    if forest:
        assert choose_attention(model, "forest").forest
    return Scorer(Policy(model, forest=forest), budget)
