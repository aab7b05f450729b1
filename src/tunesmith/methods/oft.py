"""OFT: the inputs of a layer are rotated by learned block-diagonal rotations.

    y = W R x,   R = diag(R₁ … R_n),   R_i = (I + Q_i)(I - Q_i)^-1,   Q_i = - Q_iᵀ starts at 0

Qiu et al., arXiv:2306.07280; on the input side and with a series for the inverse: arXiv:2506.19847.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from peft import OFTConfig, PeftConfig
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from tunesmith.methods._rotation import check_divides
from tunesmith.methods._through_peft import ThroughPeft


class Oft(ThroughPeft):
    """Rotations before frozen layers: what the layers know of each other's angles is kept."""

    usual_lr: ClassVar[float] = 5e-4
    words: ClassVar[Mapping[str, str]] = {
        "block_size": "oft_block_size",
        "dropout": "module_dropout",
        "closeness": "eps",
    }

    block_size: Annotated[int, Field(gt=1)] = 32
    """Numbers that are rotated together; it must divide the width of each layer's input."""
    blocks: Literal["own", "shared"] = "own"
    """Whether each block of a layer has a rotation of its own, or all have the same one."""
    inverse: Literal["series", "exact"] = "series"
    """How the rotation is computed: five terms of a series, which is fast, or exactly."""
    bound: Literal["free", "close"] = "free"
    """Whether rotations may go anywhere, or are held close to none (constrained OFT)."""
    closeness: Annotated[float, Field(gt=0)] = 6e-5
    """With bound close: how far a rotation may go."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of blocks that do not rotate, at random, while training."""

    def _kind(self) -> type[PeftConfig]:
        return OFTConfig

    def _more(self, model: PreTrainedModel) -> dict[str, Any]:
        return {
            "block_share": self.blocks == "shared",
            "use_cayley_neumann": self.inverse == "series",
            "coft": self.bound == "close",
        }

    def _adopted(self, model: PreTrainedModel, saved: PeftConfig) -> dict[str, tuple[Any, Any]]:
        settings: Any = saved
        return {
            "blocks": (self.blocks, "shared" if settings.block_share else "own"),
            "inverse": (self.inverse, "series" if settings.use_cayley_neumann else "exact"),
            "bound": (self.bound, "close" if settings.coft else "free"),
        }

    def _check_layer(self, name: str, layer: nn.Module) -> None:
        check_divides("method.oft.block_size", self.block_size, name, layer)
