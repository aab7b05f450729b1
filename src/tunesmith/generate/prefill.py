"""A prompt is read once for all its answers: what is kept of it is repeated, and each row goes on alone.

    start of all prompts          ─▶ keys and values [1, …] ─▶ one copy a prompt [P, …] ─▶ the rest of each is read
    prompt without its last token ─▶ keys and values [P, …] ─▶ one copy a row [B, …] ─▶ generate goes on with the last
    prompt of an encoder          ─▶ its states [P, L, d]   ─▶ one copy a row [B, …] ─▶ generate begins the answer

Whether a model can go on so is found by trying: the first logits of a small batch, read once and read row by row. What
differs, as a state space whose state is no cache of tokens, reads its prompt anew for each answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

from tunesmith.data.prefixes import LEAST, common
from tunesmith.generate.batches import Job
from tunesmith.generate.held import is_rounded
from tunesmith.models.probe import TOLERANCE

IN_DIGITS = 2e-2
"""As `TOLERANCE`, where activations are rounded to digits: the last one is another for what differs by a rounding."""

Inputs = Mapping[str, Any]
"""What `generate` is called with for some prompts: tokens [P, L] or their embeddings, a mask, perhaps a cache."""


def common_start(prompts: Sequence[Job]) -> int:
    """How many tokens all prompts begin with, the last of each left out; 0 where that does not pay."""
    first, last = (choose(job.tokens for job in prompts) for choose in (min, max))
    length = min(common(np.array(first), np.array(last)), min(len(job.tokens) for job in prompts) - 1)
    return length if len(prompts) > 1 and length >= LEAST else 0


def start_read(base: Any, model: Any, inputs: Inputs, length: int) -> dict[str, Any]:
    """The inputs of prompts, whose first `length` columns hold the same tokens in all and were read once."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    cache = DynamicCache(config=base.config.get_text_config(decoder=True))
    _read(base, model, {"input_ids": ids[:1, :length]}, mask[:1, : length + 1], cache)
    first: Any = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
    cache.reorder_cache(first)
    return {**inputs, "past_key_values": cache}


def repeated(inputs: Inputs, rows: Tensor) -> dict[str, Any]:
    """The inputs of rows [B], each of which is a prompt of its own, of which nothing was read yet.

    rows: the prompt of each row.
    """
    cache = inputs.get("past_key_values")
    if cache is not None:
        cache.reorder_cache(rows)
    own = {name: part[rows] for name, part in inputs.items() if isinstance(part, Tensor)}
    return own if cache is None else {**own, "past_key_values": cache}


def read_once(base: Any, model: Any, inputs: Inputs, rows: Tensor, **further: Any) -> dict[str, Any]:
    """The same, of which everything was read that the rows of a prompt have in common.

    base: the transformers model; model: what is called, it or a wrapper of it; further: what it is called with beside.
    """
    if base.config.is_encoder_decoder:
        return _encoded(base, inputs, rows)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    cache = inputs.get("past_key_values")
    cache = DynamicCache(config=base.config.get_text_config(decoder=True)) if cache is None else cache
    begun = cache.get_seq_length()
    if ids.shape[1] - begun > 1:
        embedded = inputs.get("inputs_embeds")
        text = {"input_ids": ids[:, begun:-1]} if embedded is None else {"inputs_embeds": embedded[:, begun:-1]}
        _read(base, model, text, mask, cache, **further)
    return repeated({**inputs, "past_key_values": cache}, rows)


@torch.no_grad()
def refused(
    base: Any, model: Any, prompts: Callable[[Tensor, Tensor], Inputs], pads: bool, opening: Mapping[str, Any]
) -> str | None:
    """Why a prompt is not read once for all its answers; None if it is.

    prompts: from tokens [P, L] and mask [P, L] to inputs; pads: whether the mask may have zeros; opening: how an answer
    begins, as options of `generate`.
    """
    size = base.config.get_text_config().vocab_size
    tokens = torch.arange(14, device=base.device).view(2, 7) % size
    mask = torch.ones_like(tokens)
    if pads:
        side = slice(5, None) if base.config.is_encoder_decoder else slice(None, 2)
        mask[1, side] = 0
    rows = torch.tensor([0, 0, 1], device=base.device)
    expected = _first_logits(model, repeated(prompts(tokens, mask), rows), opening)
    return _fault(
        base,
        expected,
        lambda: _first_logits(model, read_once(base, model, prompts(tokens, mask), rows), opening),
    )


@torch.no_grad()
def start_refused(base: Any, model: Any, pads: bool) -> str | None:
    """Why what prompts begin with is not read once for all of them; None if it is. pads: as in `refused`."""
    tokens = torch.arange(14, device=base.device).view(2, 7) % base.config.get_text_config().vocab_size
    mask, rows = torch.ones_like(tokens), torch.arange(2, device=base.device)
    tokens[1, :3] = tokens[0, :3]
    alone, alone_mask = tokens.clone(), mask.clone()
    if pads:
        mask[1, 3:5] = 0
        alone[1, 2:5], alone_mask[1, :2] = tokens[0, :3], 0
    expected = _first_logits(model, {"input_ids": alone, "attention_mask": alone_mask}, {})

    def found() -> Tensor:
        inputs = start_read(base, model, {"input_ids": tokens, "attention_mask": mask}, 3)
        return _first_logits(model, read_once(base, model, inputs, rows), {})

    return _fault(base, expected, found)


def _fault(base: Any, expected: Tensor, going_on: Callable[[], Tensor]) -> str | None:
    """Why logits of rows that go on from what was read are not those of rows read by themselves; None if they are."""
    try:
        found = going_on()
    except Exception as error:  # whatever a foreign architecture raises means that it cannot go on so
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        return f"{type(base).__name__} cannot go on from a prompt that was read ({why})"
    off = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
    if not off <= (IN_DIGITS if is_rounded(base) else TOLERANCE.get(base.dtype, 1e-4)):
        return f"{type(base).__name__} goes on otherwise from a prompt that was read (logits differ by {off:.2g})"
    return None


def _first_logits(model: Any, inputs: Inputs, opening: Mapping[str, Any]) -> Tensor:
    """[B, V] the logits that the first token of each row is taken by."""
    asked = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    return model.generate(**inputs, generation_config=GenerationConfig(**asked, **opening)).logits[0].float()


def _encoded(base: Any, inputs: Inputs, rows: Tensor) -> dict[str, Any]:
    """The inputs of a decoder's rows, whose encoder read each prompt once."""
    states = base.get_encoder()(**inputs, return_dict=True).last_hidden_state
    outputs = BaseModelOutput(last_hidden_state=states[rows])
    return {"encoder_outputs": outputs, "attention_mask": inputs["attention_mask"][rows]}


def _read(base: Any, model: Any, text: Mapping[str, Tensor], mask: Tensor, cache: Any, **further: Any) -> None:
    """Put text behind what a cache holds; mask: of both, and of the token that comes next."""
    options = {"use_cache": True, "past_key_values": cache, **_accepted(base, mask, cache.get_seq_length())}
    model(**text, attention_mask=mask[:, :-1], **options, **further)


def _accepted(base: Any, mask: Tensor, begun: int) -> dict[str, Any]:
    """What `generate` would pass of positions, and how few logits it would ask for, where the model takes them."""
    known = inspect.signature(base.forward).parameters
    positions = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
    options = {"position_ids": positions[:, begun:-1], "logits_to_keep": 1}
    return {name: value for name, value in options.items() if name in known}
