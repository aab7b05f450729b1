# pyright: reportUnknownMemberType=false
"""The base that an adapter was trained on, where that was held in few bits: as it was, and how far the original is.

W ─ quantise ─▶ codes ─ write out ─▶ W~

W~ + B A   what was trained and measured: the adapter learned over W~
W  + B A   another model, near to it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.core.run import ModelSpec
from tunesmith.core.yaml_file import read_yaml
from tunesmith.models.device import DTYPES
from tunesmith.models.load import load
from tunesmith.models.quantize import Held, settle, steady
from tunesmith.models.source import Found, head_of


@dataclass(frozen=True, slots=True)
class Shift:
    """How far the original base with the adapter is from what was trained.

    difference: largest difference of logits relative to the largest logit; nats: mean divergence of the next token's
    probabilities, KL(trained || original).
    """

    kind: str
    difference: float
    nats: float


def held_as(found: Found) -> Held | None:
    """How the base was held when an adapter was trained on it; None for plain weights.

    Raises:
        Problem: the package that holds it is not installed.
    """
    return settle(_spec(found), found).held


def as_trained(found: Found, held: Held) -> PreTrainedModel:
    """The base as the adapter's run had it, in the same bits, computing in float32."""
    model = load(_spec(found), head_of(found), weights=_run_type(found)).model
    for weight in model.parameters():
        if weight.dtype in (torch.bfloat16, torch.float16) and not hasattr(weight, "tensor_data_names"):
            weight.data = weight.data.float()
    if held.four_bits:
        steady(model, torch.float32)
    return model


def shift(kind: str, trained: Sequence[Tensor], original: Sequence[Tensor]) -> Shift:
    """Compare logits [1, L, V] of the same prompts."""
    size = max(float(part.abs().max()) for part in trained)
    pairs = list(zip(trained, original, strict=True))
    largest = max(float((left - right).abs().max()) for left, right in pairs)
    return Shift(kind, largest / size, sum(_divergence(left, right) for left, right in pairs) / len(pairs))


def _divergence(left: Tensor, right: Tensor) -> float:
    first, second = left.log_softmax(dim=-1), right.log_softmax(dim=-1)
    return float((first.exp() * (first - second)).sum(dim=-1).mean())


def _spec(found: Found) -> ModelSpec:
    """How to load the base that a run trained on; the run, where there is one, says in how many bits."""
    return ModelSpec(
        path=str(found.run.path if found.run else found.base),
        dtype="float32",
        attention="padded",
    )


def _run_type(found: Found) -> torch.dtype | None:
    """The number type that the run's weights were in before they were quantised."""
    if found.run is None:
        return None
    value, _ = read_yaml(found.run.run_file)
    model: Any = cast("dict[str, Any]", value).get("model") if isinstance(value, dict) else None
    return DTYPES.get(str(cast("dict[str, Any]", model).get("dtype"))) if isinstance(model, dict) else None
