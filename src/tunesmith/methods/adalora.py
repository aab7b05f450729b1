"""AdaLoRA: LoRA in the form of a singular value decomposition, whose ranks move to where they matter.

    W' = W + s P diag(e) Q,   Q [r, in], P [out, r],   e starts at 0

    warm ──▶ spread: after each step importances are averaged, and the least important values of e go to 0,
             until `rank` are left on average ──▶ settle: ranks stay

    importance of a weight = average of |w ∂L/∂w| times average of how far it varies
    loss + orthogonality * mean over layers of |QQᵀ - I| + |PᵀP - I|, while training

Zhang et al., arXiv:2303.10512.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from peft import AdaLoraConfig, PeftConfig, PeftModel
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.core.problem import Problem
from tunesmith.methods import Formula, Losses, Method
from tunesmith.methods._low_rank import transposed
from tunesmith.methods._through_peft import ThroughPeft, wrapped
from tunesmith.models.forest import Batch
from tunesmith.models.policy import Policy

Share = Annotated[float, Field(ge=0, lt=1)]
PREFIX = "base_model.model."
VALUES = "lora_E"
AVERAGES = {"mean": "exp_avg_ipt", "spread": "exp_avg_unc"}


class AdaLora(ThroughPeft):
    """LoRA that gives important layers a higher rank and takes it from others, within a budget."""

    usual_lr: ClassVar[float] = 1e-3
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, Conv1D)
    rank_option: ClassVar[str] = "start_rank"
    words: ClassVar[Mapping[str, str]] = {
        "rank": "target_r",
        "start_rank": "init_r",
        "alpha": "lora_alpha",
        "dropout": "lora_dropout",
        "every": "deltaT",
        "orthogonality": "orth_reg_weight",
    }

    harmless: ClassVar[tuple[str, ...]] = (
        *ThroughPeft.harmless,
        "Adapter 'default'",  # layers that were left with no rank have empty matrices
    )

    rank: Annotated[int, Field(gt=0)] = 8
    """The rank of a layer at the end, on average."""
    start_rank: Annotated[int, Field(gt=0)] = 12
    """The rank of each layer at the start, which is also the highest that one can keep."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """Strength of the change: it is scaled by alpha / start_rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of inputs of the change that is left out at random while training."""
    warm: Share = 0.1
    """Share of the steps at the start in which all ranks stay."""
    settle: Share = 0.3
    """Share of the steps at the end in which the ranks that were found stay."""
    every: Annotated[int, Field(gt=0)] = 1
    """Ranks move each so many steps."""
    orthogonality: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the term that keeps directions apart, so that their importances can be compared."""

    @model_validator(mode="after")
    def _leaves_room(self) -> AdaLora:
        faults = {
            f"start_rank {self.start_rank} is not above rank {self.rank}, so no rank could move": (
                self.start_rank <= self.rank
            ),
            f"warm {self.warm} and settle {self.settle} leave no steps to move ranks in": self.warm + self.settle >= 1,
        }
        for fault, found in faults.items():
            if found:
                problem = Problem("", fault, "Raise start_rank, or lower rank, warm or settle; or use the method lora")
                raise ValueError(problem) from problem
        return self

    def apply(self, model: PreTrainedModel) -> nn.Module:
        trained = super().apply(model)
        for name, weight in trained.named_parameters():
            if ".ranknum." in name:  # PEFT's note of the first rank, which learns where it was moved to a device
                weight.requires_grad_(False)
        return trained

    def adopt(self, model: PreTrainedModel, adapter: Path) -> nn.Module:
        return Method.adopt(self, model, adapter)

    def begin(self, policy: Policy, batches: Iterator[Batch], steps: int) -> None:
        warm, settle = round(self.warm * steps), round(self.settle * steps)
        if steps - settle - warm < 1:
            raise Problem(
                "method.adalora",
                f"the run's {steps} steps leave none to move ranks in (warm {warm}, settle {settle})",
                "Train for more steps, or lower warm or settle",
            )
        config = _config(wrapped(policy.trained))
        config.total_step, config.tinit, config.tfinal = steps, warm, settle

    def loss(self, policy: Policy, batch: Batch, formula: Formula) -> Losses:
        loss, figures = formula.loss(policy, batch)
        if not policy.trained.training or self.orthogonality == 0:
            return loss, figures
        term = _slant(policy.trained) * formula.count(batch)
        return loss + self.orthogonality * term, {**figures, "slant": term.detach()}

    def after_step(self, model: nn.Module, step: int) -> None:
        trained = wrapped(model)
        config, tuner = _config(trained), trained.base_model
        last = config.total_step - config.tfinal  # type: ignore[operator]
        if step + 1 > last and tuner.rankallocator.exp_avg_ipt:  # type: ignore[union-attr]
            tuner.update_and_allocate(last)  # type: ignore[operator]  # the step that settles the ranks was skipped
        tuner.update_and_allocate(step + 1)  # type: ignore[operator]

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """Averages of importance, and which values of e are kept."""
        allocator = wrapped(model).base_model.rankallocator
        found = {
            f"{word}.{name}": value
            for word, kept in AVERAGES.items()
            for name, value in getattr(allocator, kept).items()
        }
        pattern = _config(wrapped(model)).rank_pattern or {}
        return {
            **found,
            "ranks": torch.tensor(len(pattern)),
            **{f"kept.{n}": torch.tensor(v) for n, v in pattern.items()},
        }

    def restore(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        trained = wrapped(model)
        allocator = trained.base_model.rankallocator
        weights = dict(trained.base_model.model.named_parameters())  # type: ignore[union-attr]
        for word, kept in AVERAGES.items():
            part = _under(f"{word}.", state)
            setattr(allocator, kept, {name: value.to(weights[name].device) for name, value in part.items()})
        allocator.ipt = {name: torch.zeros_like(weights[name]) for name in allocator.exp_avg_ipt}  # type: ignore[union-attr]
        _config(trained).rank_pattern = {n: v.tolist() for n, v in _under("kept.", state).items()} or None

    def report(self, model: nn.Module) -> list[str]:
        ranks = {name: int((value != 0).sum()) for name, value in _values(wrapped(model)).items()}
        gist = f"ranks: {sum(ranks.values()) / len(ranks):.1f} on average of {self.start_rank} at the start"
        span = f"from {min(ranks.values())} to {max(ranks.values())}"
        return [f"{gist}, {span}", *(f"{name.partition(f'.{VALUES}')[0]}: rank {rank}" for name, rank in ranks.items())]

    def save(self, model: nn.Module, folder: Path) -> None:
        """Only what is kept is written; between two moves of ranks more than that may be in use, and is kept too."""
        trained = wrapped(model)
        config = _config(trained)
        pattern = config.rank_pattern
        if pattern is not None:
            config.rank_pattern = {n: (value != 0).flatten().tolist() for n, value in _values(trained).items()}
        self._write(trained, folder)
        config.rank_pattern = pattern

    def _kind(self) -> type[PeftConfig]:
        return AdaLoraConfig

    def _more(self, model: PreTrainedModel) -> dict[str, Any]:
        return {"total_step": 1, "fan_in_fan_out": transposed(model)}


def _config(trained: PeftModel) -> AdaLoraConfig:
    config = trained.peft_config["default"]
    assert isinstance(config, AdaLoraConfig)
    return config


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _values(trained: PeftModel) -> dict[str, Tensor]:
    """The values e of each layer, by PEFT's names."""
    named = trained.base_model.model.named_parameters()  # type: ignore[union-attr]
    return {name: weight.detach() for name, weight in named if f".{VALUES}." in name}


def _slant(model: nn.Module) -> Tensor:
    """How far the directions of a layer are from being orthogonal, on average over its two matrices."""
    terms = []
    for name, weight in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            product = weight @ weight.T if ".lora_A." in name else weight.T @ weight
            terms.append(torch.linalg.matrix_norm(product - torch.eye(len(product), device=product.device)))
    return torch.stack(terms).mean()
