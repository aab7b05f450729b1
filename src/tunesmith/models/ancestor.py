"""The common ancestor of all rows: the learned vectors of a soft prompt, as PEFT's wrapper of a model holds them.

    ancestor ──┬── row          positions 0 … n-1 are the ancestor's, every row goes on from n
               ├── row
               └── row

    embeddings (prompt, p_tuning)           n virtual tokens: one more root, whose children are the batch's trees
    keys and values (prefix, p_tuning_v2)   what each layer's attention finds before the keys of the rows

It is looked up on the model (`ancestor_of`) by whatever runs it: the policy for forests and padded rows, the local
engine for answers. PEFT's own forward and generate are not used; they compute the same for one row, but leave out
positions and put a batch's padding between the vectors and the text.

A layer with a sliding window sees the ancestor as it sees any earlier token: while it is inside the window. So
transformers and PEFT compute it, and an adapter must mean the same wherever it is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel, PeftType
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from tunesmith.core.problem import Problem
from tunesmith.models.forest import Layout, Segment

Inputs = Mapping[str, Tensor]
"""What a model is called with: `input_ids` [B, L] or `inputs_embeds` [B, L, d]."""
EMBEDDINGS = (PeftType.PROMPT_TUNING, PeftType.P_TUNING)
KEYS_AND_VALUES = (PeftType.PREFIX_TUNING,)


class Ancestor:
    """No ancestor: rows as they are."""

    @property
    def length(self) -> int:
        """n, positions that it takes before every row."""
        return 0

    @property
    def states(self) -> int:
        """Hidden states that come before a row's own."""
        return 0

    def layout(self, layout: Layout) -> Layout:
        """The tree with the ancestor above it."""
        return layout

    def inputs(self, model: PreTrainedModel, inputs: Inputs) -> dict[str, Tensor]:
        """Inputs with what of the ancestor is itself computed, before them."""
        return dict(inputs)

    def rows(self, model: PreTrainedModel, inputs: Inputs, mask: Tensor) -> dict[str, Any]:
        """Inputs and mask [R, L] of rows padded on the right, each under the ancestor."""
        return {**inputs, "attention_mask": mask}

    def prompts(self, model: PreTrainedModel, tokens: Tensor, mask: Tensor) -> dict[str, Any]:
        """What transformers' `generate` goes on from: tokens and mask [B, L] under the ancestor.

        Rows are padded on the left, those of an encoder on the right. The n columns that are added hold a token of the
        row itself, which no penalty on repetition counts anew.
        """
        return {"input_ids": tokens, "attention_mask": mask}

    def pads(self, model: PreTrainedModel) -> bool:
        """Whether prompts of several lengths may stand in one batch for `generate`."""
        return True


@dataclass(frozen=True)
class Embeddings(Ancestor):
    """Virtual tokens: vectors [n, d] in place of embedded tokens."""

    vectors: Tensor

    @property
    def length(self) -> int:
        return len(self.vectors)

    @property
    def states(self) -> int:
        return len(self.vectors)

    def layout(self, layout: Layout) -> Layout:
        n = self.length
        below = [Segment(s.start + n, s.stop + n, 0 if s.parent is None else s.parent + 1) for s in layout.segments]
        own = torch.arange(n, device=layout.positions.device)
        return Layout((Segment(0, n, None), *below), torch.cat([own, layout.positions + n]))

    def inputs(self, model: PreTrainedModel, inputs: Inputs) -> dict[str, Tensor]:
        embedded = inputs.get("inputs_embeds")
        if embedded is None:
            embedded = cast(nn.Module, model.get_input_embeddings())(inputs["input_ids"])
        vectors = self.vectors.to(embedded.dtype).expand(len(embedded), -1, -1)
        return {"inputs_embeds": torch.cat([vectors, embedded], dim=1)}

    def rows(self, model: PreTrainedModel, inputs: Inputs, mask: Tensor) -> dict[str, Any]:
        return {**self.inputs(model, inputs), "attention_mask": _seen(mask, self.length)}

    def prompts(self, model: PreTrainedModel, tokens: Tensor, mask: Tensor) -> dict[str, Any]:
        if model.config.is_encoder_decoder:
            return self.rows(model, {"input_ids": tokens}, mask)
        embedded = self.inputs(model, {"input_ids": tokens})["inputs_embeds"]
        tokens, mask = _stood_in(tokens, self.length), _seen(mask, self.length)
        order = mask.argsort(dim=1, stable=True)  # padding first, so that vectors and text stand side by side
        return {
            "input_ids": tokens.gather(1, order),
            "inputs_embeds": embedded.gather(1, order[..., None].expand_as(embedded)),
            "attention_mask": mask.gather(1, order),
        }


@dataclass(frozen=True)
class KeysAndValues(Ancestor):
    """What attention finds before a row: for each layer keys and values [1, G, n, D]."""

    layers: tuple[tuple[Tensor, Tensor], ...]

    @property
    def length(self) -> int:
        return self.layers[0][0].shape[2]

    def layout(self, layout: Layout) -> Layout:
        return Layout(layout.segments, layout.positions + self.length, self.layers)

    def rows(self, model: PreTrainedModel, inputs: Inputs, mask: Tensor) -> dict[str, Any]:
        cache = self.cache(model, len(mask))
        return {**inputs, "attention_mask": _seen(mask, self.length), "past_key_values": cache}

    def prompts(self, model: PreTrainedModel, tokens: Tensor, mask: Tensor) -> dict[str, Any]:
        return {
            "input_ids": _stood_in(tokens, self.length),
            "attention_mask": _seen(mask, self.length),
            "past_key_values": self.cache(model, len(tokens)),
        }

    def pads(self, model: PreTrainedModel) -> bool:
        # Padding stands behind the cache, and windows are counted over columns.
        config = model.config.get_text_config()
        return not any(getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))

    def cache(self, model: PreTrainedModel, rows: int) -> DynamicCache:
        """A cache as if so many rows had read the ancestor."""
        cache = DynamicCache(config=model.config)
        for number, (key, value) in enumerate(self.layers):
            key, value = (part.to(model.dtype).expand(rows, -1, -1, -1) for part in (key, value))
            cache.update(key, value, number)
        return cache


NONE = Ancestor()


def ancestor_of(model: nn.Module) -> Ancestor:
    """The ancestor of a model's rows: that of the soft prompt on it, unless it is switched off, or none.

    Raises:
        Problem: a soft prompt of a kind that is not computed here.
    """
    config = _soft_prompt(model)
    if config is None:
        return NONE
    assert isinstance(model, PeftModel)
    if config.peft_type in EMBEDDINGS:
        return Embeddings(_learned(model)[: config.num_virtual_tokens])
    if config.peft_type in KEYS_AND_VALUES:
        return KeysAndValues(_layers(_learned(model), config))
    raise Problem(
        "adapter",
        f"is a soft prompt of the kind {config.peft_type.value}, which is not computed here",
        f"Known: {', '.join(kind.value for kind in (*EMBEDDINGS, *KEYS_AND_VALUES))}",
    )


@contextmanager
def without(model: PeftModel) -> Iterator[None]:
    """The model without its soft prompt, and with the last layer that it had before."""
    wrappers = [part for part in model.modules() if isinstance(part, AuxiliaryTrainingWrapper)]
    learned = [weight.requires_grad for weight in model.parameters()]
    with model.disable_adapter():
        for wrapper in wrappers:
            wrapper.enable_adapters(False)
        try:
            yield
        finally:
            for wrapper in wrappers:
                wrapper.enable_adapters(True)
            for weight, learns in zip(model.parameters(), learned, strict=True):
                weight.requires_grad_(learns)


def length_of(model: nn.Module) -> int:
    """Positions that the ancestor of a model's rows takes before every row."""
    config = _soft_prompt(model)
    return 0 if config is None else int(config.num_virtual_tokens)


def saved_length(adapter: Path | None) -> int:
    """Positions that a saved adapter takes before every row; 0 if it is no soft prompt."""
    if adapter is None:
        return 0
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    return int(config.get("num_virtual_tokens") or 0)


def unfoldable(place: str) -> Problem:
    """The refusal to fold a soft prompt."""
    return Problem(
        place,
        "holds vectors that stand before the text, which no weight of the base can hold, so it cannot be folded",
        "Use base and adapter together: chat, evaluate and PEFT take the adapter's folder as it is",
    )


def _soft_prompt(model: nn.Module) -> Any:
    """PEFT's configuration of the soft prompt on a model; None if there is none, or it is switched off."""
    if not isinstance(model, PeftModel) or not next(iter(model.peft_config.values())).is_prompt_learning:
        return None
    return model.active_peft_config if model.has_active_enabled_adapter else None


def _learned(model: PeftModel) -> Tensor:
    """[n, …] the vectors: those that were saved, or while training what their encoder makes of its own weights.

    It computes in the type of its weights: not every processor has an LSTM in bfloat16.
    """
    name, config = str(model.active_adapter), cast(Any, model.active_peft_config)
    encoder: Any = model.prompt_encoder[name]
    if config.inference_mode:
        return encoder.embedding.weight
    numbers = model.prompt_tokens[name].to(encoder.embedding.weight.device)
    if config.peft_type in KEYS_AND_VALUES:
        numbers = numbers[: config.num_virtual_tokens]
    with torch.autocast(numbers.device.type, enabled=False):
        return encoder(numbers[None])[0]


def _layers(flat: Tensor, config: Any) -> tuple[tuple[Tensor, Tensor], ...]:
    """Keys and values by layer from PEFT's flat rows [n, layers * 2 * G * D]."""
    width = config.token_dim // config.num_attention_heads
    parts = flat.view(len(flat), config.num_layers, 2, config.num_attention_heads, width).permute(1, 2, 3, 0, 4)
    return tuple((layer[0][None], layer[1][None]) for layer in parts)


def _seen(mask: Tensor, n: int) -> Tensor:
    """A mask [R, L] with n columns before it that every row sees."""
    return torch.cat([mask.new_ones(len(mask), n), mask], dim=1)


def _stood_in(tokens: Tensor, n: int) -> Tensor:
    """Tokens [B, L] with n columns before them that hold each row's last token."""
    return torch.cat([tokens[:, -1:].expand(-1, n), tokens], dim=1)
