# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
"""What a saved LoRA adapter adds to each weight of its base, read from files without building a model.

    plain   W' = W + s B A
    dora    W' = m * V / |V|,   V = W + s B A,   |V| by output row

Hu et al., arXiv:2106.09685; Liu et al. (DoRA), arXiv:2402.09353. Sums are in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tunesmith.core.problem import Problem
from tunesmith.models.source import read_json

PREFIX = "base_model.model."
UNKNOWN = (
    "layer_replication",
    "bias",
    "lora_bias",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "target_parameters",
)
"""Settings of an adapter that need more than the formulas above."""


@dataclass
class Change:
    """What one weight gets: low-rank factors, magnitudes (DoRA), or a value that replaces it."""

    down: Tensor | None = None
    up: Tensor | None = None
    magnitude: Tensor | None = None
    value: Tensor | None = None
    scale: float = 1.0
    transposed: bool = False

    def apply(self, weight: Tensor) -> Tensor:
        """The changed weight in float32; `weight` may be of any type."""
        if self.value is not None:
            return self.value.float()
        assert self.up is not None and self.down is not None
        delta = self.scale * (self.up.float() @ self.down.float())
        changed = weight.float() + (delta.T if self.transposed else delta)
        if self.magnitude is None:
            return changed
        axis = 0 if self.transposed else 1
        length = torch.linalg.vector_norm(changed, dim=axis, keepdim=True)
        return changed * (self.magnitude.float().view_as(length) / length)


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: its changes by the name of the base's weight."""

    changes: Mapping[str, Change] = field(default_factory=dict[str, Change])


def read_adapter(folder: Path) -> Adapter | None:
    """The adapter in a folder, or None if it needs more than low-rank factors and replaced layers.

    Raises:
        Problem: the files do not fit together.
    """
    config = read_json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA" or any(_set(config.get(name)) for name in UNKNOWN):
        return None
    changes: dict[str, Change] = {}
    for name, tensor in _tensors(folder / "adapter_model.safetensors"):
        if not _take(name.removeprefix(PREFIX), tensor, changes, config):
            return None
    _check(folder, changes)
    return Adapter(changes)


def _take(name: str, tensor: Tensor, changes: dict[str, Change], config: Mapping[str, Any]) -> bool:
    """Sort one tensor of the file into the changes; False for a kind that is not known here."""
    for mark, slot in ((".lora_A.weight", "down"), (".lora_B.weight", "up"), (".lora_magnitude_vector", "magnitude")):
        module, found, rest = name.partition(mark)
        if found and rest in ("", ".weight"):
            change = changes.setdefault(f"{module}.weight", Change())
            change.scale = _scale(module, config)
            change.transposed = bool(config.get("fan_in_fan_out"))
            setattr(change, slot, tensor)
            return True
    if "lora_" in name:
        return False
    changes[name] = Change(value=tensor)
    return True


def _scale(module: str, config: Mapping[str, Any]) -> float:
    rank = _pattern(config.get("rank_pattern"), module, config["r"])
    alpha = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _pattern(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    """PEFT's rule: the first pattern that the module's name ends in, at a dot."""
    import re

    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    return float(default)


def _check(folder: Path, changes: Mapping[str, Change]) -> None:
    for name, change in changes.items():
        if change.value is None and (change.up is None or change.down is None):
            raise Problem(str(folder), f"holds only one half of the change of {name}", "The adapter is not complete")


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
            yield name, tensors.get_tensor(name)


def _set(value: Any) -> bool:
    return bool(value) and value != "none"
