"""IA³: keys, values and the inside of the MLP are rescaled by learned vectors.

    k' = l_k * (W_k x),   v' = l_v * (W_v x),   y' = W_down (l_ff * h);   every l starts at 1

Liu et al., arXiv:2205.05638.
"""

from __future__ import annotations

from typing import Any, ClassVar

from peft import IA3Config, PeftConfig
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)
from pydantic import field_validator
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.core.problem import Problem, nearest
from tunesmith.methods._low_rank import transposed
from tunesmith.methods._through_peft import ThroughPeft, inner_layers

USUAL = "usual"
INSIDE = ("k_proj", "v_proj", "down_proj")
"""Keys, values and the MLP's last layer, as most architectures call them."""


class Ia3(ThroughPeft):
    """Vectors that rescale keys, values and the MLP: the fewest weights, with larger learning rates than others."""

    usual_lr: ClassVar[float] = 5e-3
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, Conv1D)

    targets: tuple[str, ...] = (USUAL,)
    """Layers that are rescaled, by the end of their names; `usual` for keys, values and the MLP's last layer."""
    feedforward: tuple[str, ...] = (USUAL,)
    """Those of the targets whose input is rescaled instead of their output; `usual` for the MLP's last layer."""

    @field_validator("feedforward", mode="before", json_schema_input_type=tuple[str, ...] | str)
    @classmethod
    def _one_is_a_list_too(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    def _kind(self) -> type[PeftConfig]:
        return IA3Config

    def _more(self, model: PreTrainedModel) -> dict[str, Any]:
        return {"feedforward_modules": list(self._inputs(model)), "fan_in_fan_out": transposed(model)}

    def _target_modules(self, model: PreTrainedModel) -> str | list[str]:
        return list(self._rescaled(model))

    def _check(self, model: PreTrainedModel) -> None:
        rescaled = self._rescaled(model)
        self.model_copy(update={"targets": rescaled})._check_targets(model)
        for name in self._inputs(model):
            if name not in rescaled:
                raise Problem("method.ia3.feedforward", f"{name!r} is not among the targets", nearest(name, rescaled))

    def _check_targets(self, model: PreTrainedModel) -> None:
        super()._check(model)

    def _adopted(self, model: PreTrainedModel, saved: PeftConfig) -> dict[str, tuple[Any, Any]]:
        found: Any = saved.feedforward_modules or ()  # type: ignore[attr-defined]
        return {"feedforward": (sorted(self._inputs(model)), sorted(found))}

    def _rescaled(self, model: PreTrainedModel) -> tuple[str, ...]:
        """The targets, with what is usual for this architecture."""
        if USUAL not in self.targets:
            return self.targets
        known = TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(model.config.model_type)
        ends = {name.rpartition(".")[2] for name in inner_layers(model)}
        if set(INSIDE) <= ends:
            return INSIDE
        if known is None:
            raise Problem(
                "method.ia3.targets",
                f"what is usual is not known for {type(model).__name__}",
                f"Name the layers of keys and values and the MLP's last one, out of: {', '.join(sorted(ends))}",
            )
        return tuple(known)

    def _inputs(self, model: PreTrainedModel) -> tuple[str, ...]:
        """The targets whose input is rescaled."""
        if USUAL not in self.feedforward:
            return self.feedforward
        known = TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(model.config.model_type, [])
        return tuple(name for name in self._rescaled(model) if name in {INSIDE[-1], *known})
