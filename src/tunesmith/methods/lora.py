"""LoRA: a low-rank change beside frozen weights, through PEFT.

    W' = W + s B A,   A [r, in], B [out, r],   s = alpha / r  (rank-stabilised: alpha / sqrt r)

Hu et al., arXiv:2106.09685; rsLoRA arXiv:2312.03732; DoRA arXiv:2402.09353; PiSSA arXiv:2404.02948;
OLoRA arXiv:2406.01775; EVA arXiv:2410.07170; LoftQ arXiv:2310.08659. Starts that change the base (PiSSA, OLoRA) are
saved as plain LoRA of twice the rank, whose base is the untouched model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from peft import EvaConfig, PeftConfig, PeftModel
from pydantic import model_validator
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.core.problem import Problem
from tunesmith.methods import Method
from tunesmith.methods._eva import most_components, rank_lines, start_from_inputs
from tunesmith.methods._loftq import make_up_for_quantizing
from tunesmith.methods._low_rank import LowRank
from tunesmith.methods._through_peft import wrapped
from tunesmith.models.forest import Batch
from tunesmith.models.policy import Policy
from tunesmith.models.quantize import Held

STARTS = {"zero": True, "loftq": True}
"""PEFT's word for a start where it is another; LoftQ's values are put in afterwards."""
CHANGES_BASE = ("pissa", "olora")


class Lora(LowRank):
    """A low-rank change beside frozen weights: little memory, a small file, and it can be switched off."""

    harmless: ClassVar[tuple[str, ...]] = (
        *LowRank.harmless,
        "PiSSA changes the base weights",  # so they do, and what is saved is converted to plain LoRA
        "OLoRA changes the base weights",
        "lora with eva initialization used with low_cpu_mem_usage",  # the matrices are made here, and then found
    )

    form: Literal["plain", "dora"] = "plain"
    """`dora` learns the length of each column apart from its direction: often better, slower."""
    start: Literal["zero", "gaussian", "orthogonal", "pissa", "olora", "eva", "loftq"] = "zero"
    """First values: no change (zero, gaussian, orthogonal; eva along the data), the base's main directions (pissa,
    olora), or what quantising the base lost (loftq)."""
    ranks: Literal["even", "by_variance"] = "even"
    """With start eva: the same rank for each layer, or more where its inputs vary more, as many in all."""

    @model_validator(mode="after")
    def _fits_together(self) -> Lora:
        faults = {
            f"form dora and start {self.start} do not go together": self.form == "dora"
            and self.start in (*CHANGES_BASE, "loftq"),
            "start orthogonal needs an even rank": self.start == "orthogonal" and self.rank % 2 == 1,
            "ranks by_variance needs the start eva": self.ranks == "by_variance" and self.start != "eva",
        }
        for fault, found in faults.items():
            if found:
                problem = Problem("", fault, "Change one of the two")
                raise ValueError(problem) from problem
        return self

    @property
    def reversible(self) -> bool:
        return self.start not in CHANGES_BASE

    @property
    def starts_at_identity(self) -> bool:
        return self.start != "loftq"

    def unfit(self, held: Held) -> str:
        return f"start {self.start} takes its first values out of the base's weights" if not self.reversible else ""

    @property
    def needs_quantized_base(self) -> str:
        return "start loftq makes up for what quantising a base loses" if self.start == "loftq" else ""

    def outline(self) -> Method:
        return self.model_copy(update={"start": "zero"})

    def apply(self, model: PreTrainedModel) -> nn.Module:
        trained = wrapped(super().apply(model))
        if self.start in CHANGES_BASE:
            _remember_start(trained)
        if self.start == "loftq":
            make_up_for_quantizing(trained)
        return trained

    def begin(self, policy: Policy, batches: Iterator[Batch], steps: int) -> None:
        if self.start == "eva":
            start_from_inputs(policy, batches, redistribute=self.ranks == "by_variance")

    def report(self, model: nn.Module) -> list[str]:
        return rank_lines(wrapped(model)) if self.ranks == "by_variance" else []

    def save(self, model: nn.Module, folder: Path) -> None:
        trained = wrapped(model)
        start = getattr(trained, "start_folder", None)
        convert = {} if start is None else {"path_initial_model_for_weight_conversion": start.name}
        self._write(trained, folder, **convert)

    def _more(self, model: PreTrainedModel) -> dict[str, Any]:
        own = {"use_dora": self.form == "dora", "init_lora_weights": STARTS.get(self.start, self.start)}
        if self.start == "eva":
            rho = most_components(self.rank) / self.rank if self.ranks == "by_variance" else 1.0
            own["eva_config"] = EvaConfig(rho=rho, adjust_scaling_factors=self.scaling == "classic")
        return {**super()._more(model), **own}

    def _check_layer(self, name: str, layer: nn.Module) -> None:
        if self.start == "olora" and isinstance(layer, Conv1D):
            raise Problem(
                "method.lora.start",
                f"olora does not work for {name}, which holds its weights transposed",
                "Use another start, such as pissa",
            )
        if self.start not in ("zero", "gaussian") and isinstance(layer, nn.Embedding):
            raise Problem("method.lora.start", f"{self.start} is not for embeddings ({name})", "Use zero or gaussian")

    def _adopted(self, model: PreTrainedModel, saved: PeftConfig) -> dict[str, tuple[Any, Any]]:
        form = "dora" if saved.use_dora else "plain"  # type: ignore[attr-defined]
        return {**super()._adopted(model, saved), "form": (self.form, form), "start": (self.start, "zero")}


def _remember_start(trained: PeftModel) -> None:
    """Keep the first values of a start that moved them out of the base, to save the difference to them later."""
    folder = tempfile.TemporaryDirectory(prefix="tunesmith-start-")
    config = trained.peft_config["default"]
    chosen, config.init_lora_weights = config.init_lora_weights, True  # type: ignore[attr-defined]
    trained.save_pretrained(folder.name, safe_serialization=True)
    config.init_lora_weights = chosen  # type: ignore[attr-defined]
    trained.start_folder = folder  # type: ignore[assignment]
