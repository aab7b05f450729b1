"""The blocks of a transformer and the parts of each, found by structure: every architecture has names of its own.

    model ─▶ outermost lists of modules (one, or one each for encoder and decoder) ─▶ Block ─▶ attentions, mlp

Attention is what is called so and holds linear layers itself; the feed-forward part is what is called so and has no
norm of its own (a part with a norm is a wrapper with the residual in it, as in T5, and is looked into).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.core.problem import Problem

ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
FEED_FORWARD = re.compile(r"mlp|feed_?forward|ffn|dense|moe", re.IGNORECASE)
NORM = re.compile(r"norm|^ln_", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Block:
    """One block: its path in the model, its module, its attentions and its feed-forward part, where it has them."""

    path: str
    module: nn.Module
    attentions: tuple[nn.Module, ...]
    mlp: nn.Module | None


def stacks(model: PreTrainedModel) -> dict[str, nn.ModuleList]:
    """The outermost lists of modules by path: the model's blocks."""
    found: dict[str, nn.ModuleList] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(path.startswith(f"{outer}.") for outer in found):
            found[path] = module
    return found


def blocks(model: PreTrainedModel) -> list[Block]:
    """All blocks of a model, those of an encoder before those of a decoder."""
    return [_block(f"{path}.{number}", part) for path, stack in stacks(model).items() for number, part in items(stack)]


def single_stack(model: PreTrainedModel, where: str) -> tuple[str, nn.ModuleList]:
    """The one list of blocks of a model with a decoder only, and its path.

    Raises:
        Problem: there is none, or the model has an encoder and a decoder.
    """
    found = stacks(model)
    if model.config.is_encoder_decoder or len(found) != 1:
        has = "an encoder and a decoder" if model.config.is_encoder_decoder else f"{len(found)} lists of blocks"
        raise Problem(
            where,
            f"works on models with one list of blocks, and {type(model).__name__} has {has}",
            "Use a model with a decoder only, or another method",
        )
    return next(iter(found.items()))


def items(stack: nn.ModuleList) -> Iterator[tuple[int, nn.Module]]:
    """Numbers and modules of a list of blocks."""
    yield from enumerate(stack)


def is_norm(name: str, module: nn.Module) -> bool:
    """Whether a module normalises, by its own name or its class."""
    return bool(NORM.search(name) or NORM.search(type(module).__name__))


def width(model: PreTrainedModel) -> int:
    """Numbers in a hidden state."""
    return int(model.config.get_text_config().hidden_size)


def _block(path: str, module: nn.Module) -> Block:
    attentions = [part for kind, part in _parts(module) if kind == "attention"]
    mlps = [part for kind, part in _parts(module) if kind == "mlp"]
    return Block(path, module, tuple(attentions), mlps[0] if len(mlps) == 1 else None)


def _parts(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        word = f"{name} {type(child).__name__}"
        linear = any(isinstance(part, nn.Linear | Conv1D) for part in child.children())
        if is_norm(name, child) or isinstance(child, nn.Linear | Conv1D) or not any(True for _ in child.parameters()):
            continue
        if ATTENTION.search(word) and linear:
            yield "attention", child
        elif FEED_FORWARD.search(word) and not any(is_norm(inner, part) for inner, part in child.named_children()):
            yield "mlp", child
        else:
            yield from _parts(child)
