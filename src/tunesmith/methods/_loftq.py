"""LoftQ: LoRA over a quantised base starts with what quantising lost.

    B A = first r singular directions of  (W - Q(W)) / s

PEFT has it for GPUs only; this is the same step on any device. Li et al., arXiv:2310.08659.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.core.problem import Problem
from tunesmith.models.quantize import plain_weight
from tunesmith.models.source import find

PREFIX = "base_model.model."


@torch.no_grad()
def make_up_for_quantizing(trained: PeftModel) -> None:
    """Set the change of each layer to the best one of its rank for what quantising took.

    Raises:
        Problem: a layer is not quantised, or the base's files do not hold a weight under its name.
    """
    base = find(str(trained.get_base_model().name_or_path)).base
    for name, layer in trained.named_modules():
        if isinstance(layer, LoraLayer):
            _start(layer, _stored(base, f"{name.removeprefix(PREFIX)}.weight"))


def _start(layer: LoraLayer, weight: Tensor) -> None:
    inner = layer.get_base_layer()
    held = plain_weight(inner)
    if held is None:
        raise Problem(
            "method.lora.start",
            "loftq makes up for what quantising the base loses, and this base is not quantised",
            "Set model.quantize to nf4, or use another start",
        )
    turned = weight.T if getattr(inner, "source_cls", None) is Conv1D else weight
    lost = turned.to(held.device).float() - held.float()
    left, sizes, right = torch.linalg.svd(lost, full_matrices=False)
    rank, roots = layer.r["default"], (sizes / layer.scaling["default"]).sqrt()
    _put(layer.lora_A["default"], roots[:rank, None] * right[:rank])
    _put(layer.lora_B["default"], left[:, :rank] * roots[:rank])


def _put(part: nn.Module, value: Tensor) -> None:
    weight = part.weight
    assert isinstance(weight, Tensor)
    weight.copy_(value)


def _stored(base: Path, name: str) -> Tensor:
    """A weight of the base as its files hold it."""
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                return tensors.get_tensor(name)
    raise Problem(str(base), f"holds no weight {name}, which the start loftq needs", "Use another start")
