"""Shapes of models, and the floating-point operations that a training step needs at least.

Counted are products of matrices, two operations for each multiplication and addition: forward, the gradient of inputs
where something below learns, the gradient of weights that learn; attention over what a token may see and no more; the
head at learned tokens only. Nothing is counted twice for being recomputed, and no padding. So the share of the
machine's rate that a program reaches falls with everything it does beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Row = tuple[int, int]
"""(tokens of the prompt, tokens of the answer, which are learned)"""
Learns = Literal["lora", "full"]


@dataclass(frozen=True)
class Shape:
    """A decoder of the Llama kind: widths, heads and vocabulary; `bias`: at queries, keys and values."""

    name: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    bias: bool = False
    head_width: int = 64

    def config(self) -> dict[str, Any]:
        """As transformers takes it; both kinds tie their head to their embeddings."""
        return {
            "model_type": "qwen2" if self.bias else "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocab,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": 1,
            "pad_token_id": 0,
        }

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the linear layers of one block."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
            "gate_proj": (self.hidden, self.inner),
            "up_proj": (self.hidden, self.inner),
            "down_proj": (self.inner, self.hidden),
        }

    @property
    def parameters(self) -> int:
        """Weights of all matrices, the head being the embeddings."""
        block = sum(inputs * outputs for inputs, outputs in self.linears.values())
        return self.layers * block + self.vocab * self.hidden

    def products(self, tokens: int, learned: int) -> list[tuple[int, int, int]]:
        """The products of one block and of the head's share of a block's work, as (rows, inner, columns)."""
        return [(tokens, *pair) for pair in self.linears.values()] + [
            (max(1, learned // self.layers), self.hidden, self.vocab)
        ]


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("smollm2-135m", 576, 1536, 30, 9, 3, 49_152),
        Shape("qwen2.5-0.5b", 896, 4864, 24, 14, 2, 151_936, bias=True),
        Shape("tiny", 64, 128, 2, 2, 1, 512, head_width=32),
    )
}
BELOW_FIRST = ("q_proj", "k_proj", "v_proj")
"""Nothing below these learns in the first block, while embeddings are frozen: their inputs need no gradient."""


def flops(shape: Shape, rows: Sequence[Row], learns: Learns, rank: int = 8) -> int:
    """Operations of one step over some rows.

    rank: of LoRA on all linear layers; it stands for nothing where the whole model learns.
    """
    tokens, learned = sum(map(sum, rows)), sum(answer for _, answer in rows)
    step = _lora(shape, tokens, rank) if learns == "lora" else _full(shape, tokens)
    head = 2 * learned * shape.hidden * shape.vocab * (2 if learns == "lora" else 3)
    return step + head + sum(_attention(shape, sum(row)) for row in rows)


def _lora(shape: Shape, tokens: int, rank: int) -> int:
    """Frozen matrices forward and for their inputs' gradient; adapters forward and for both gradients."""
    total = 0
    for layer in range(shape.layers):
        for name, (inputs, outputs) in shape.linears.items():
            bottom = layer == 0 and name in BELOW_FIRST
            total += 2 * tokens * inputs * outputs * (1 if bottom else 2)
            total += 2 * tokens * rank * ((inputs + outputs) * 3 - (inputs if bottom else 0))
    return total


def _full(shape: Shape, tokens: int) -> int:
    """All matrices forward and for both gradients; embeddings are looked up, not multiplied."""
    block = sum(inputs * outputs for inputs, outputs in shape.linears.values())
    return 3 * 2 * tokens * block * shape.layers


def _attention(shape: Shape, length: int) -> int:
    """Two products forward and four backward over the tokens that each token sees, itself among them."""
    seen = length * (length + 1) // 2
    return 6 * 2 * seen * shape.heads * shape.head_width * shape.layers
