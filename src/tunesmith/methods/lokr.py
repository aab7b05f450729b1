"""LoKr: a change that is the Kronecker product of a small matrix and a low-rank one.

    W' = W + s C ⊗ (B A),   C [f, f], B [out / f, r], A [r, in / f],   s = alpha / r

Edalati et al. (KronA), arXiv:2212.10650; Yeh et al. (LyCORIS), arXiv:2309.14859.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from peft import LoKrConfig, PeftConfig
from pydantic import Field
from transformers import PreTrainedModel

from tunesmith.methods._through_peft import ThroughPeft
from tunesmith.models.quantize import Held


class LoKr(ThroughPeft):
    """A Kronecker product beside frozen weights: few weights, and a change of high rank."""

    usual_lr: ClassVar[float] = 1e-3
    words: ClassVar[Mapping[str, str]] = {
        "rank": "r",
        "alpha": "alpha",
        "factor": "decompose_factor",
        "dropout": "rank_dropout",
        "layer_dropout": "module_dropout",
    }
    free: ClassVar[frozenset[str]] = frozenset({"dropout", "layer_dropout"})

    rank: Annotated[int, Field(gt=0)] = 8
    """Columns of the low-rank factor; a factor that is no larger is learned whole."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """Strength of the change: it is scaled by alpha / rank."""
    factor: Annotated[int, Field(ge=-1)] = -1
    """Rows of the small factor; -1 for the number that makes the two as alike as can be."""
    small_factor: Literal["whole", "low_rank"] = "whole"
    """Whether the small factor is learned whole, or made of low rank too."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the change's rows that is left out at random while training."""
    layer_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """How often the whole change of a layer is left out while training."""

    def unfit(self, held: Held) -> str:
        return "PEFT takes the shape of this change from a plain matrix" if held.four_bits else ""

    def _kind(self) -> type[PeftConfig]:
        return LoKrConfig

    def _more(self, model: PreTrainedModel) -> dict[str, Any]:
        return {"decompose_both": self.small_factor == "low_rank"}

    def _adopted(self, model: PreTrainedModel, saved: PeftConfig) -> dict[str, tuple[Any, Any]]:
        found = "low_rank" if saved.decompose_both else "whole"  # type: ignore[attr-defined]
        return {"small_factor": (self.small_factor, found)}
