"""Options that several optimizers share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tunesmith.optimizers import OptimizerSpec

Beta = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0)]


class AdamOptions(OptimizerSpec):
    """Options of all that divide a mean gradient by the root of a mean square."""

    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """How long the averages of the gradient and of its square remember."""
    eps: Positive = 1e-8
    """Keeps the division from exploding."""
    weight_decay: Share = 0.0
    """Share of each matrix that is taken off a step, times lr; vectors (norms, biases) are left alone."""
