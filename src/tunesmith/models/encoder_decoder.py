"""A batch as an encoder-decoder reads it: prompts go into the encoder, answers into the decoder.

    forest    [ prompt ........ | chosen .... | rejected .. | prompt ..... | answer ... ]
               └─ encoder row 0   └─ decoder 0  └─ decoder 1   └─ encoder 1   └─ decoder 2

    decoder row        start  a₀  a₁  a₂          each token is predicted from the state of the one before it,
    predicts             a₀   a₁  a₂              the first from the state of the decoder's start token

The tree says it all: a root is read once by the encoder, and every answer to it attends to the same states. The
target whose source is the prompt's last token is read at the decoder's start. Prompts of like length are padded
beside each other, so at most half of what the encoder computes is padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from tunesmith.models.ancestor import NONE, Ancestor
from tunesmith.models.forest import Batch

Inputs = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""From tokens [B, L] and the length [B, L] of the row each stands in to what a model is called with."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """Some prompts of a batch, as segments, with their answers by number, and for each the place of its prompt."""

    prompts: tuple[int, ...]
    answers: tuple[int, ...]
    prompt_of: tuple[int, ...]


def hidden(
    model: PreTrainedModel, batch: Batch, source: Tensor, row: Tensor, inputs: Inputs, ancestor: Ancestor = NONE
) -> Tensor:
    """[K, d] states of the decoder's last layer that predict what follows tokens `source` [K] in answers `row` [K].

    Raises:
        ValueError: a row without an answer, or a prompt that is to be learned.
    """
    prompts = _prompts(batch)
    starts, ends = _edges(batch, prompts)
    if not source.is_meta and bool((source < ends[row]).any()):
        raise ValueError("the encoder predicts nothing, so nothing of a prompt can be learned")
    offsets = torch.zeros(batch.answers, dtype=torch.long)
    states: list[Tensor] = []
    filled = 0
    for rows in _groups(batch, prompts):
        decoded = _decoded(model, batch, rows, inputs, ancestor)
        offsets[list(rows.answers)] = filled + decoded.shape[1] * torch.arange(len(decoded))
        states.append(decoded.flatten(0, 1))
        filled += len(states[-1])
    places = offsets.to(row.device)[row] + (source - starts[row] + 1).clamp_min(0)
    return torch.cat(states)[places]


def _prompts(batch: Batch) -> list[int]:
    """[R] the segment that each answer goes on from."""
    parents = [batch.segments[leaf].parent for leaf in batch.leaves]
    found = [parent for parent in parents if parent is not None]
    if len(found) < len(parents):
        raise ValueError("a row without an answer leaves the decoder nothing to predict")
    return found


def _edges(batch: Batch, prompts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """[R] the first token of each answer, and [R] the last one of its prompt."""
    starts = [batch.segments[leaf].start for leaf in batch.leaves]
    ends = [batch.segments[prompt].stop - 1 for prompt in prompts]
    return torch.tensor(starts, device=batch.tokens.device), torch.tensor(ends, device=batch.tokens.device)


def _groups(batch: Batch, prompts: Sequence[int]) -> list[_Rows]:
    """The rows of a batch in groups whose prompts are all more than half as long as the longest of the group."""
    answers: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        answers.setdefault(prompt, []).append(number)
    lengths = {prompt: len(batch.path(prompt)) for prompt in answers}
    groups: list[list[int]] = []
    for prompt in sorted(answers, key=lambda prompt: (-lengths[prompt], prompt)):
        if not groups or 2 * lengths[prompt] <= lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(prompt)
    return [_rows(group, answers) for group in groups]


def _rows(prompts: Sequence[int], answers: dict[int, list[int]]) -> _Rows:
    pairs = [(answer, place) for place, prompt in enumerate(prompts) for answer in answers[prompt]]
    return _Rows(tuple(prompts), tuple(answer for answer, _ in pairs), tuple(place for _, place in pairs))


def _decoded(model: PreTrainedModel, batch: Batch, rows: _Rows, inputs: Inputs, ancestor: Ancestor) -> Tensor:
    """[answers, 1 + longest answer, d] the decoder's states, at its start token and at each token of an answer."""
    prompts, prompt_mask = _padded([batch.path(prompt) for prompt in rows.prompts])
    start = batch.tokens.new_tensor([start_token(model)])
    answers, answer_mask = _padded([torch.cat([start, _answer(batch, number)]) for number in rows.answers])
    encoder: Any = model.get_encoder()
    decoder: Any = model.get_decoder()
    given = ancestor.rows(model, _inputs(prompts, prompt_mask, inputs), prompt_mask)
    prompt_mask = given.pop("attention_mask")
    encoded = encoder(**given, attention_mask=_shown(prompt_mask, prompt_mask.shape[1])).last_hidden_state
    if len(rows.answers) != len(rows.prompts):
        of = torch.tensor(rows.prompt_of, device=encoded.device)
        encoded, prompt_mask = encoded[of], prompt_mask[of]
    return decoder(
        **_inputs(answers, answer_mask, inputs),
        attention_mask=_shown(answer_mask, answers.shape[1]),
        encoder_hidden_states=encoded,
        encoder_attention_mask=_shown(prompt_mask, answers.shape[1]),
        use_cache=False,
    ).last_hidden_state


def _answer(batch: Batch, number: int) -> Tensor:
    found = batch.segments[batch.leaves[number]]
    return batch.tokens[found.start : found.stop]


def _padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows one below the other, padded on the right: tokens [B, L] and mask [B, L]."""
    tokens = pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=tokens.device)
    mask = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    return tokens, mask.long()


def _shown(mask: Tensor, queries: int) -> Tensor:
    """A mask [B, L] as models take it; on the meta device, where none can be looked into, one for each query."""
    return mask.bool()[:, None, None].expand(-1, 1, queries, -1) if mask.is_meta else mask


def _inputs(tokens: Tensor, mask: Tensor, inputs: Inputs) -> dict[str, Tensor]:
    return inputs(tokens, mask.sum(dim=1, keepdim=True).expand_as(mask))


def start_token(model: PreTrainedModel) -> int:
    """The token that the decoder starts with: the one that the configuration names, or its beginning of text.

    Raises:
        ValueError: neither is named.
    """
    configs = (model.config, model.generation_config, getattr(model.config, "decoder", None))
    for name in ("decoder_start_token_id", "bos_token_id"):
        for config in configs:
            if (found := getattr(config, name, None)) is not None:
                return int(found)
    raise ValueError("the configuration names no token that the decoder starts with (decoder_start_token_id)")
