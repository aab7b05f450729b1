"""What LoRA and its kin share: two thin matrices beside a frozen one.

W' = W + s B A,   A [r, in], B [out, r],   s = alpha / r  (rank-stabilised: alpha / sqrt r)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from peft import LoraConfig, PeftConfig
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.methods._through_peft import ThroughPeft


class LowRank(ThroughPeft):
    """A low-rank change beside frozen weights."""

    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, Conv1D, nn.Embedding)
    rank_option: ClassVar[str] = "rank"
    words: ClassVar[Mapping[str, str]] = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}

    rank: Annotated[int, Field(gt=0)] = 8
    """Columns of the change; more can learn more and takes more memory."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """Strength of the change: it is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of inputs of the change that is left out at random while training."""
    scaling: Literal["classic", "rank_stabilized"] = "classic"
    """alpha / rank, or alpha / sqrt(rank), which keeps large ranks learning."""

    def _kind(self) -> type[PeftConfig]:
        return LoraConfig

    def _more(self, model: PreTrainedModel) -> dict[str, Any]:
        return {"use_rslora": self.scaling == "rank_stabilized", "fan_in_fan_out": transposed(model)}

    def _adopted(self, model: PreTrainedModel, saved: PeftConfig) -> dict[str, tuple[Any, Any]]:
        found = "rank_stabilized" if saved.use_rslora else "classic"  # type: ignore[attr-defined]
        return {"scaling": (self.scaling, found)}


def transposed(model: nn.Module) -> bool:
    """Whether a model's layers hold their weights transposed."""
    return any(Conv1D in (type(module), getattr(module, "source_cls", None)) for module in model.modules())
