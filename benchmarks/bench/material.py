"""What a training benchmark works on: a model with random weights, a tokenizer with a word for each token, rows."""

from __future__ import annotations

import json
from pathlib import Path

from bench.shapes import Shape

TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{{ ' </s>' if message['role'] == 'assistant' else ' ' }}{% endfor %}"
)
"""Turns one after the other and an end behind answers, nothing else, so that a row is its tokens."""


def model(shape: Shape, folder: Path, seed: int = 0, dtype: str = "float32") -> None:
    """Write a model with random weights, and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = shape.config()
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    made.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer(shape.vocab, folder)


def tokenizer(vocab: int, folder: Path) -> None:
    """Write a tokenizer that reads `t123` as token 123."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {f"t{number}": number for number in range(3, vocab)}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    made.add_special_tokens(["<pad>", "</s>", "<unk>"])
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 8192,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
