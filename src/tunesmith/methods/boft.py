"""BOFT: the outputs of a layer are rotated by a product of sparse rotations, laid out like a butterfly, and rescaled.

    W' = diag(s) R₁ R₂ … R_m W,   each R_i block-diagonal after a permutation;   R_i starts at I, s at 1

Liu et al., arXiv:2311.06243.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from peft import BOFTConfig, PeftConfig
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from tunesmith.core.problem import Problem
from tunesmith.methods._rotation import check_divides
from tunesmith.methods._through_peft import ThroughPeft


class Boft(ThroughPeft):
    """Rotations of small blocks, several in a row, before frozen layers, and a scale for each output."""

    usual_lr: ClassVar[float] = 1e-3
    words: ClassVar[Mapping[str, str]] = {
        "block_size": "boft_block_size",
        "butterflies": "boft_n_butterfly_factor",
        "dropout": "boft_dropout",
    }

    harmless: ClassVar[tuple[str, ...]] = (
        *ThroughPeft.harmless,
        "Failed to load the CUDA extension",  # only several rotations in a row need it
        "Setting boft_n_butterfly_factor to 1",
    )

    block_size: Annotated[int, Field(gt=1)] = 4
    """Numbers that are rotated together; it must divide the width of each layer's input."""
    butterflies: Annotated[int, Field(ge=1)] = 1
    """Rotations in a row, over numbers ever farther apart; more than one needs PEFT's CUDA kernel."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of blocks that do not rotate, at random, while training."""

    def _kind(self) -> type[PeftConfig]:
        return BOFTConfig

    def _check(self, model: PreTrainedModel) -> None:
        if self.butterflies > 1 and not _has_kernel():
            raise Problem(
                "method.boft.butterflies",
                f"{self.butterflies} need PEFT's CUDA kernel, which cannot be built here, and PEFT would use 1",
                "Set it to 1",
            )
        super()._check(model)

    def _check_layer(self, name: str, layer: nn.Module) -> None:
        check_divides("method.boft.block_size", self.block_size, name, layer)


def _has_kernel() -> bool:
    """Whether PEFT can build its kernel: it needs nvcc, and on other machines it passes over the setting."""
    from torch.utils.cpp_extension import CUDA_HOME

    return CUDA_HOME is not None
