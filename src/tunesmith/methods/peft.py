"""Any other adapter of PEFT, by PEFT's own name and options.

The types, with their papers: c3a arXiv:2407.19342, delora arXiv:2503.18225, fourierft arXiv:2405.03003,
gralora arXiv:2505.20355, hira (ICLR 2025), hra arXiv:2405.17484, miss arXiv:2409.15371,
randlora arXiv:2502.00987, road arXiv:2409.00119, shira arXiv:2406.13175, vblora arXiv:2405.15179. The others are
described in PEFT's documentation under their names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from peft import PeftConfig, PeftModel, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.core.problem import Problem, nearest
from tunesmith.methods._low_rank import transposed
from tunesmith.methods._through_peft import ThroughPeft, heeded
from tunesmith.models.quantize import Held

Type = Literal[
    "beft",
    "c3a",
    "deft",
    "delora",
    "fourierft",
    "glora",
    "gralora",
    "hira",
    "hra",
    "miss",
    "peanut",
    "pvera",
    "randlora",
    "road",
    "shira",
    "tinylora",
    "unilora",
    "vblora",
    "waveft",
]
TRANSPOSED = {"deft", "fourierft", "gralora", "hira", "pvera", "randlora", "tinylora", "unilora", "vblora", "waveft"}
"""Types that are for layers with transposed weights too."""
SET_HERE = {field.name for field in dataclasses.fields(PeftConfig)} | {"target_modules", "modules_to_save", "bias"}
FIRST: Mapping[str, Mapping[str, Any]] = {
    "c3a": {"init_weights": True},
    "fourierft": {"init_weights": True},
    "shira": {"random_seed": 0},
}
"""Settings other than PEFT's defaults: such as start at no change at all, and are the same whenever they are made."""
NEEDS_WEIGHTS = {
    *("deft", "delora", "glora", "hra", "peanut", "tinylora"),
    *(("bitsandbytes", "unilora"), ("bitsandbytes", "gralora"), ("torchao", "hira")),
}
"""Types that fail, or learn wrongly and say nothing, over a base in few bits: every one, or one of a library."""
NOT_AT_IDENTITY = ("unilora", "vblora")
"""Their vectors are shared by both factors of each change: where all were 0, nothing could ever learn."""


class Peft(ThroughPeft):
    """Any other adapter of PEFT, by its name there: a way to try what is new."""

    usual_lr: ClassVar[float] = 1e-3

    harmless: ClassVar[tuple[str, ...]] = (
        *ThroughPeft.harmless,
        "Detected that the base layer has no bias term",  # beft: a fold says so
    )

    type: Type
    """The adapter, as PEFT calls it."""
    options: dict[str, Any] = Field(default_factory=dict)
    """PEFT's own settings of this type, as its documentation has them."""

    @model_validator(mode="after")
    def _options_are_known(self) -> Peft:
        known = {field.name for field in dataclasses.fields(self._kind())} - SET_HERE
        for option in self.options:
            if option not in known:
                why = "is set by tunesmith" if option in SET_HERE else f"is no setting of {self.type}"
                problem = Problem(f"options.{option}", why, nearest(option, known))
                raise ValueError(problem) from problem
        try:
            with heeded("options"):
                self._kind()(**self.options)
        except (ValueError, TypeError) as error:
            problem = Problem("options", str(error).splitlines()[0], "See PEFT's documentation of this type")
            raise ValueError(problem) from error
        return self

    @property
    def starts_at_identity(self) -> bool:
        return self.type not in NOT_AT_IDENTITY and self.options.get("init_weights", True) is True

    def unfit(self, held: Held) -> str:
        missing = self.type in NEEDS_WEIGHTS or (held.library, self.type) in NEEDS_WEIGHTS
        return f"PEFT computes with plain matrices in {self.type}" if missing else ""

    def adopt(self, model: PreTrainedModel, adapter: Path) -> nn.Module:
        saved: Any = PeftConfig.from_pretrained(str(adapter))
        if isinstance(saved, self._kind()):
            self._compare({f"options.{name}": (value, getattr(saved, name)) for name, value in self.options.items()})
        return super().adopt(model, adapter)

    def _put_on(self, model: PreTrainedModel, config: PeftConfig) -> PeftModel:
        if self.type == "shira" and model.device.type == "meta":
            config.mask_fn = _some_mask  # type: ignore[attr-defined]
        return super()._put_on(model, config)

    def _kind(self) -> type[PeftConfig]:
        return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(self.type.upper())]

    def _more(self, model: PreTrainedModel) -> dict[str, Any]:
        fields = {field.name for field in dataclasses.fields(self._kind())}
        turned = {"fan_in_fan_out": transposed(model)} if "fan_in_fan_out" in fields else {}
        return {**turned, **FIRST.get(self.type, {}), **self.options}

    def _fits(self, layer: nn.Module) -> bool:
        return isinstance(layer, (nn.Linear, Conv1D) if self.type in TRANSPOSED else nn.Linear)


def _some_mask(layer: nn.Linear, r: int, **settings: Any) -> Tensor:
    """A mask with as many ones as SHiRA's, for layers without memory, where none can be drawn."""
    chosen = torch.zeros(layer.out_features * layer.in_features, dtype=torch.bool, device="cpu")
    chosen[: r * (layer.out_features + layer.in_features)] = True
    return chosen.view(layer.out_features, layer.in_features)
