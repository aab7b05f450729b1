"""LoHa: a change made of two low-rank ones, multiplied number by number.

    W' = W + s (B₁ A₁) * (B₂ A₂),   s = alpha / r;   its rank is up to r²

Hyeon-Woo, Ye-Bin & Oh (FedPara), arXiv:2108.06098; Yeh et al. (LyCORIS), arXiv:2309.14859.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from peft import LoHaConfig, PeftConfig
from pydantic import Field

from tunesmith.methods._through_peft import ThroughPeft
from tunesmith.models.quantize import Held


class LoHa(ThroughPeft):
    """Two low-rank changes multiplied number by number: a high rank from few weights."""

    usual_lr: ClassVar[float] = 1e-3
    rank_option: ClassVar[str] = "rank"
    words: ClassVar[Mapping[str, str]] = {
        "rank": "r",
        "alpha": "alpha",
        "dropout": "rank_dropout",
        "layer_dropout": "module_dropout",
    }
    free: ClassVar[frozenset[str]] = frozenset({"dropout", "layer_dropout"})

    rank: Annotated[int, Field(gt=0)] = 8
    """Columns of each of the two; the rank of their product is up to the square of it."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """Strength of the change: it is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the change's rows that is left out at random while training."""
    layer_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """How often the whole change of a layer is left out while training."""

    def unfit(self, held: Held) -> str:
        return "PEFT takes the shape of this change from a plain matrix" if held.four_bits else ""

    def _kind(self) -> type[PeftConfig]:
        return LoHaConfig
