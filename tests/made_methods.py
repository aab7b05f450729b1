"""Methods on tiny models: put on, trained for a few steps, measured."""

from __future__ import annotations

from typing import Any

import tiny
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from tunesmith.core.plugins import build
from tunesmith.methods import Losses, Method
from tunesmith.models.forest import Batch
from tunesmith.models.policy import Policy
from tunesmith.models.probe import choose_attention
from tunesmith.objectives import next_token_loss

TOKENS = torch.arange(3, 43).reshape(2, 20)


class NextToken:
    """The objective of plain text, as methods see it."""

    def count(self, batch: Batch) -> float:
        return float(batch.targets.weight.sum())

    def loss(self, policy: Policy, batch: Batch) -> Losses:
        return next_token_loss(policy, batch), {}


def method_of(name: str, **options: Any) -> Method:
    found = build("method", {name: options})
    assert isinstance(found, Method)
    return found


def policy_of(model: PreTrainedModel, trained: nn.Module, *, forest: bool = True) -> Policy:
    """The model as training sees it; padded where it takes no forest."""
    return Policy(model, forest=forest and choose_attention(model, "auto").forest, trained=trained)


def logits(model: nn.Module) -> Tensor:
    """What a model computes of some tokens in evaluation mode, without a cache."""
    training = model.training
    model.eval()
    with torch.no_grad():
        out = model(input_ids=TOKENS, use_cache=False).logits
    model.train(training)
    return out


def learn(model: PreTrainedModel, trained: nn.Module, method: Method, steps: int, lr: float = 1e-2) -> list[float]:
    """So many steps of AdamW on the losses of a method over two batches; the loss before each step."""
    policy = policy_of(model, trained)
    optimizer = torch.optim.AdamW(method.groups(trained, lr), weight_decay=0.0)
    batches = [tiny.forest(seed=seed) for seed in (1, 2)]
    count = sum(NextToken().count(batch) for batch in batches)
    trained.train()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        torch.manual_seed(0)
        parts = [method.loss(policy, batch, NextToken())[0] / count for batch in batches]
        for part in parts:
            part.backward()
        optimizer.step()
        losses.append(float(sum(part.detach() for part in parts)))
    return losses


def shake(model: nn.Module, part: float = 0.1) -> None:
    """Move what learns to random values, so that every part of a method matters."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(part * torch.randn_like(weight))


def size(values: Tensor) -> float:
    return float(values.abs().max())


def t5(**changes: Any) -> PreTrainedModel:
    """A tiny encoder-decoder."""
    torch.manual_seed(0)
    options = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4, "vocab_size": tiny.vocabulary()}
    return T5ForConditionalGeneration(T5Config(**{**options, "decoder_start_token_id": 0, **changes})).eval()
