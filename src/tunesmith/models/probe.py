"""Whether a model takes forests, found by trying: a small forest against the same rows padded.

    system ─┬─ answer        an untouched transformers attention does the padded rows,
            └─ answer        tunesmith's attention the forest
    row      a tree beside the first: NaN put into the first must not reach it

The proof is cheap (some forty tokens) and covers what no list of architectures could: whatever passes computes the
same, whatever does not falls back to padded rows, and the reason is printed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.core.rows import Piece, TokenRow
from tunesmith.models.attention import NAME
from tunesmith.models.forest import Batch
from tunesmith.models.heads import HeadSpec, reads_both_ways
from tunesmith.models.likelihood import Head
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy

TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Largest difference of log-probabilities, relative to their size, that rounding explains."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether forests are computed, and why, for a person."""

    forest: bool
    reason: str


def choose_attention(model: PreTrainedModel, wanted: str) -> Verdict:
    """Set the model's attention for forests if it takes them, else leave its own.

    wanted: `auto`, `forest` or `padded`. With `forest` the reason of a failure is in the verdict and the caller
    refuses it.
    """
    own = model.config._attn_implementation
    if model.config.is_encoder_decoder:
        why = f"{type(model).__name__} has an encoder and a decoder, and takes no forest"
        return Verdict(False, f"{why}; each prompt is read once, and its answers are padded rows")
    if reads_both_ways(model.config):
        return Verdict(False, f"{type(model).__name__} reads texts both ways, and takes no forest; rows are padded")
    if wanted == "padded":
        return Verdict(False, "padded rows were asked for")
    batch = _small_forest(model.config.get_text_config().vocab_size).to(model.device)
    expected = _measure(model, batch, forest=False)
    try:
        model.set_attn_implementation(NAME)
        found = _measure(model, batch, forest=True)
        leaks = _leaks(model, batch)
    except Exception as error:  # whatever a foreign architecture raises means that it takes no forest
        return _fall_back(model, own, f"{type(error).__name__}: {error}".splitlines()[0])
    difference = _difference(found, expected)
    if model.config._attn_implementation != NAME or difference > TOLERANCE[model.dtype]:
        return _fall_back(model, own, f"log-probabilities differ by {difference:.2g}")
    if leaks:
        return _fall_back(model, own, "what stands in a tree reaches the tree beside it")
    return Verdict(True, f"forest and padded rows agree to {difference:.0e} on a probe")


def check_head(model: PreTrainedModel) -> float:
    """How far chunked head logits are from the model's own, relative to their size: scales and caps are all known.

    Of an encoder-decoder the log-probabilities of answers are compared instead, which proves its two sides as well.
    """
    if model.config.is_encoder_decoder:
        return _check_sides(model)
    tokens = _small_forest(model.config.get_text_config().vocab_size).tokens.to(model.device)[None, :8]
    with torch.no_grad():
        decoder = getattr(model, model.base_model_prefix)
        ours = Head.of(model).logits(decoder(input_ids=tokens, use_cache=False).last_hidden_state)
        theirs = model(input_ids=tokens, use_cache=False).logits.float()
    return _difference(ours, theirs)


@torch.no_grad()
def check_labels(model: PreTrainedModel, forest: bool) -> float:
    """How far scores for labels are from those of the model's own forward, relative to their size."""
    rows = [_marked(model, length) for length in (12, 5, 7)]
    policy = Policy(model, forest=forest)
    with policy.still():
        if HeadSpec.of(model).kind == "score":
            ours = policy.class_scores(plant(rows).to(model.device))
        else:
            ours = policy.tag_scores(plant(rows).to(model.device))
        if forest:
            model.set_attn_implementation("eager")
        theirs = torch.cat([_own_scores(model, row) for row in rows])
        if forest:
            model.set_attn_implementation(NAME)
    return _difference(ours, theirs)


def _marked(model: PreTrainedModel, length: int) -> TokenRow:
    """A row whose tokens are all marked; none of them is the one that fills up rows."""
    config = model.config.get_text_config()
    filler = config.pad_token_id or 0
    tokens = np.random.default_rng(length).integers(filler + 1, config.vocab_size + filler, length) % config.vocab_size
    return TokenRow(Piece(tokens.astype(np.int32), np.ones(length, np.float32)), marks=tuple(range(length)))


def _own_scores(model: PreTrainedModel, row: TokenRow) -> Tensor:
    """[1, C] of a row, or [L, C] of its tokens."""
    tokens = torch.from_numpy(row.trunk.tokens).to(model.device)[None].long()
    return model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits.float().flatten(0, -2)


def check_ancestor(model: PreTrainedModel, trained: nn.Module) -> str | None:
    """Why a soft prompt on a model is not computed as it should be, or None.

    It must reach what comes after it, and be the same above a forest, where the model takes one, and above padded rows.
    """
    sides = model.config.is_encoder_decoder
    batch = _small_forest(model.config.get_text_config().vocab_size, answered=sides).to(model.device)
    forest = model.config._attn_implementation == NAME
    training = model.training
    model.eval()
    try:
        bare = _states(Policy(model, forest=False), batch)
        under = _states(Policy(model, forest=False, trained=trained), batch)
        found = _states(Policy(model, forest=forest, trained=trained), batch)
    except Exception as error:  # whatever a foreign architecture raises means that it takes no such prompt
        return f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        model.train(training)
    if torch.equal(bare, under):
        return "it does not reach the text"
    difference = _difference(found, under)
    return (
        f"forest and padded rows differ by {difference:.2g}" if difference > TOLERANCE.get(model.dtype, 1e-4) else None
    )


@torch.no_grad()
def _states(policy: Policy, batch: Batch) -> Tensor:
    """[R, d] the last state of each answer."""
    rows = torch.arange(batch.answers, device=batch.tokens.device)
    return policy.hidden(batch, batch.ends, rows).float()


def _check_sides(model: PreTrainedModel) -> float:
    """A small batch of prompts with several answers against the model called with each prompt and its labels."""
    draw = np.random.default_rng(0)
    vocabulary = int(Head.of(model).layer.weight.shape[0])  # type: ignore[arg-type, union-attr]
    prompts, answers = ([draw.integers(vocabulary // 2, vocabulary, n) for n in sizes] for sizes in ((9, 4), (5, 7, 3)))
    trunks = [Piece(tokens.astype(np.int32), np.zeros(len(tokens), np.float32)) for tokens in prompts]
    first, second, third = (Piece(tokens.astype(np.int32), np.ones(len(tokens), np.float32)) for tokens in answers)
    batch = plant([TokenRow(trunks[0], (first, second)), TokenRow(trunks[1], (third,))]).to(model.device)
    policy = Policy(model, forest=False)
    with torch.no_grad(), policy.still():
        ours = policy.logprobs(batch)
        pairs = zip((prompts[0], prompts[0], prompts[1]), answers, strict=True)
        theirs = torch.cat([_own_logprobs(model, prompt, answer) for prompt, answer in pairs])
    return _difference(ours, theirs)


def _own_logprobs(model: PreTrainedModel, prompt: np.ndarray, answer: np.ndarray) -> Tensor:
    """[A] the log-probability of each token of an answer, as the model itself shifts its labels."""
    tokens, labels = (torch.from_numpy(part).to(model.device)[None] for part in (prompt, answer))
    logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=labels, use_cache=False).logits
    return logits.float().log_softmax(dim=-1)[0].gather(-1, labels[0, :, None])[:, 0]


def _fall_back(model: PreTrainedModel, own: str | None, reason: str) -> Verdict:
    model.set_attn_implementation(own or "eager")
    return Verdict(False, f"{type(model).__name__} takes no forest ({reason}); rows are padded")


def _leaks(model: PreTrainedModel, batch: Batch) -> bool:
    """Whether the first tree reaches the second: NaN in the one shows in the other, in any number type."""
    first = batch.segments[2].stop

    def poison(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return output.index_fill(1, torch.arange(first, device=output.device), float("nan"))

    handle = model.get_input_embeddings().register_forward_hook(poison)
    try:
        poisoned = _measure(model, batch, forest=True)
    finally:
        handle.remove()
    rows = batch.targets.row if len(poisoned) == len(batch.targets) else torch.arange(batch.answers)
    return bool(poisoned[rows.to(poisoned.device) >= 2].isnan().any())


def _measure(model: PreTrainedModel, batch: Batch, *, forest: bool) -> Tensor:
    policy = Policy(model, forest=forest)
    rows = torch.arange(batch.answers, device=batch.tokens.device)
    with torch.no_grad(), policy.still():
        if model.get_output_embeddings() is not None:
            return policy.logprobs(batch)
        return policy.hidden(batch, batch.ends, rows).float()


def _difference(ours: Tensor, theirs: Tensor) -> float:
    size = theirs.abs().amax().clamp_min(1e-6)
    found = ((ours - theirs).abs().amax() / size).item()
    return float("inf") if np.isnan(found) else found


def _small_forest(vocabulary: int, answered: bool = False) -> Batch:
    """Rows of several shapes; answered: only those that have answers, as an encoder-decoder needs it."""
    draw = np.random.default_rng(0)

    def piece(length: int) -> Piece:
        tokens = draw.integers(0, min(vocabulary, 1000), length).astype(np.int32)
        return Piece(tokens, np.ones(length, np.float32))

    rows = [TokenRow(piece(9), (piece(5), piece(7))), TokenRow(piece(12)), TokenRow(piece(4), (piece(3),))]
    return plant([row for row in rows if row.branches or not answered])
