"""VeRA: one pair of random matrices for all layers, and two learned vectors a layer.

    W' = W + diag(b) B diag(d) A,   A [r, in] and B [out, r] random, frozen and shared;   b [out] starts at 0

Kopiczko, Blankevoort & Asano, arXiv:2310.11454.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from peft import PeftConfig, VeraConfig
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.methods._low_rank import transposed
from tunesmith.methods._through_peft import ThroughPeft


class Vera(ThroughPeft):
    """Two vectors a layer learn beside random matrices that all layers share: very few weights, a tiny file."""

    usual_lr: ClassVar[float] = 5e-3
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, Conv1D)
    words: ClassVar[Mapping[str, str]] = {
        "rank": "r",
        "dropout": "vera_dropout",
        "scale": "d_initial",
        "seed": "projection_prng_key",
    }

    rank: Annotated[int, Field(gt=0)] = 256
    """Columns of the random matrices; a vector of so many numbers learns in each layer."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of inputs of the change that is left out at random while training."""
    scale: Annotated[float, Field(gt=0)] = 0.1
    """First value of the vector between the two matrices."""
    seed: int = 0
    """What the random matrices are drawn from; they are saved with the adapter all the same."""

    def _kind(self) -> type[PeftConfig]:
        return VeraConfig

    def _more(self, model: PreTrainedModel) -> dict[str, Any]:
        return {"fan_in_fan_out": transposed(model)}
