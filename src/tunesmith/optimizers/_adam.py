"""Adam's direction from two averages, which may be kept in 8 bits.

    m ← β₁ m + (1 - β₁) g      v ← β₂ v + (1 - β₂) g²
    direction = m / (1 - β₁ᵗ) / (√(v / (1 - β₂ᵗ)) + ε)

In 8 bits each block of 256 numbers is kept as its largest size and one of 256 steps each (Dettmers et al.,
arXiv:2110.02861), with the functions of bitsandbytes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from tunesmith.core.problem import missing_extra
from tunesmith.optimizers._own import State

Kept = Literal["float32", "8bit"]
MEAN, SQUARE = "mean", "square"
BLOCK = 256
LEAST = 4096
"""State of fewer numbers stays in float32: its blocks would be few and it takes little memory."""


def direction(grad: Tensor, state: State, group: dict[str, Any]) -> Tensor:
    """Adam's direction for a gradient; the averages, the step count and how they are kept are in `state`, `group`."""
    first, second = group["betas"]
    kept: Kept = group.get("moments", "float32")
    step = state["step"] = state.get("step", 0) + 1
    mean = _read(state, MEAN, grad, kept).lerp_(grad, 1 - first)
    square = _read(state, SQUARE, grad, kept).mul_(second).addcmul_(grad, grad, value=1 - second)
    out = mean / (1 - first**step)
    out /= (square / (1 - second**step)).sqrt_().add_(group["eps"])
    _write(state, MEAN, mean, kept)
    _write(state, SQUARE, square, kept)
    return out


def moment_bytes(count: int, kept: Kept) -> int:
    """Bytes of both averages of so many numbers."""
    return 8 * count if kept == "float32" or count < LEAST else 2 * (count + 4 * -(-count // BLOCK))


def need_bitsandbytes() -> None:
    """Refuse 8-bit state where bitsandbytes is not installed.

    Raises:
        Problem: with the line that installs it.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise missing_extra("quantize", "bitsandbytes")


def _read(state: State, name: str, like: Tensor, kept: Kept) -> Tensor:
    if name in state:
        return state[name]
    if f"{name}_codes" not in state:
        return torch.zeros_like(like)
    codes, sizes = state[f"{name}_codes"], state[f"{name}_sizes"]
    _, dequantise, table = _functions(name, like)
    return dequantise(codes, absmax=sizes, code=table, blocksize=BLOCK).to(like.dtype)


def _write(state: State, name: str, value: Tensor, kept: Kept) -> None:
    if kept == "float32" or value.numel() < LEAST:
        state[name] = value
        return
    quantise, _, table = _functions(name, value)
    codes, found = quantise(value.float(), code=table, blocksize=BLOCK)
    state[f"{name}_codes"], state[f"{name}_sizes"] = codes, found.absmax


def _functions(name: str, like: Tensor) -> tuple[Callable[..., Any], Callable[..., Any], Tensor]:
    """How blocks are quantised and read back, and the steps: signed ones for the mean, others for the square."""
    from bitsandbytes import functional

    return functional.quantize_blockwise, functional.dequantize_blockwise, _table(name == MEAN, like.device)


@cache
def _table(signed: bool, device: torch.device) -> Tensor:
    from bitsandbytes import functional

    return functional.create_dynamic_map(signed=signed).to(device)
