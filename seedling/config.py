"""The untrained model: its shape, with random weights of a fixed seed, and the tokenizer beside it.

A Qwen3-style decoder with tied embeddings and grouped key/value heads. Of two shapes of about the same size the wider,
shallower one is taken: it trains more tokens a second on one thread, because its matrix products are larger.

    python -m seedling.config            # writes build/seed
    python -m seedling.config --measure  # tokens a second of each candidate shape on one thread
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from seedling import BUILD, BUILTIN
from seedling.tokenizer import ENTRIES, MAX_TOKENS, SPECIAL
from seedling.tokenizer import FILES as TOKENIZER_FILES

SEED = 20
SEED_MODEL = BUILD / "seed"
END_OF_TEXT_ID, _, TURN_END_ID = range(len(SPECIAL))

CANDIDATES: dict[str, dict[str, Any]] = {
    "narrow": {"hidden_size": 192, "num_hidden_layers": 8, "intermediate_size": 512, "num_attention_heads": 6},
    "wide": {"hidden_size": 256, "num_hidden_layers": 5, "intermediate_size": 672, "num_attention_heads": 8},
}
CHOSEN = "wide"


def configuration(shape: dict[str, Any]) -> Qwen3Config:
    """The configuration of a shape; everything else is the same for all."""
    return Qwen3Config(
        **shape,
        vocab_size=ENTRIES,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        use_cache=True,
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
        pad_token_id=END_OF_TEXT_ID,
    )


def untrained(shape: dict[str, Any]) -> Qwen3ForCausalLM:
    """A model with random float32 weights that follow from `SEED` alone."""
    torch.manual_seed(SEED)
    return Qwen3ForCausalLM(configuration(shape)).float()


def write(shape: dict[str, Any]) -> int:
    """Write the untrained model with its tokenizer; returns the number of its parameters."""
    SEED_MODEL.mkdir(parents=True, exist_ok=True)
    for file in TOKENIZER_FILES:
        shutil.copyfile(BUILTIN / "seedling" / file, SEED_MODEL / file)
    model = untrained(shape)
    ends = [END_OF_TEXT_ID, TURN_END_ID]
    model.generation_config = GenerationConfig(
        bos_token_id=END_OF_TEXT_ID, eos_token_id=ends, pad_token_id=END_OF_TEXT_ID
    )
    model.save_pretrained(SEED_MODEL)
    return model.num_parameters()


def measure(shape: dict[str, Any], rows: int = 8, length: int = 256, steps: int = 6) -> float:
    """Tokens trained in a second with plain transformers and AdamW, the fastest of a few steps."""
    model = untrained(shape).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
    tokens = torch.randint(ENTRIES, (rows, length), generator=torch.Generator().manual_seed(SEED))
    seconds: list[float] = []
    for _ in range(steps):
        start = time.perf_counter()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return tokens.numel() / min(seconds)


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    if arguments == ["--measure"]:
        for name, shape in CANDIDATES.items():
            size = untrained(shape).num_parameters()
            print(f"{name}: {size:,} parameters, {measure(shape):,.0f} tokens a second on one thread")
        return
    print(f"{SEED_MODEL}: {write(CANDIDATES[CHOSEN]):,} parameters")


if __name__ == "__main__":
    main(sys.argv[1:])
