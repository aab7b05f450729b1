"""TRL's trainers as an oracle: the same weights, the same tokens, float32.

TRL's defaults that would change the numbers are set off: bf16, checkpointing, truncation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from made_codecs import oracle
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tunesmith.core.plugins import build
from tunesmith.models.attention import NAME
from tunesmith.models.policy import Policy
from tunesmith.objectives import Objective

QUIET: dict[str, Any] = {
    "bf16": False,
    "gradient_checkpointing": False,
    "max_length": None,
    "report_to": "none",
    "use_cpu": True,
    "save_strategy": "no",
}


def plain(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")


def adapted(model: Any, seed: int = 3) -> Any:
    """LoRA whose change is still zero."""
    torch.manual_seed(seed)
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))


def changed(model: Any, seed: int = 3) -> Any:
    """A change that is not zero, so that policy and reference differ."""
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B.default" in name:
            nn.init.normal_(weight, std=0.05)
    return model


def ours(base: Path, *, lora: bool) -> tuple[Policy, nn.Module]:
    model = plain(base)
    trained = changed(adapted(model)) if lora else model
    model.set_attn_implementation(NAME)
    off = trained.disable_adapter if lora else None
    return Policy(model, forest=True, trained=trained, off=off), trained


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """The same gradients, beside the largest number of all of them."""
    assert ours.keys() == theirs.keys()
    assert ours
    size = max(float(value.abs().max()) for value in theirs.values())
    assert size > 0
    for name, value in ours.items():
        assert float((value - theirs[name]).abs().max()) <= tolerance * size, name


def objective_of(value: Any) -> Objective:
    found = build("objective", value)
    assert isinstance(found, Objective)
    return found


def reference_of(base: Path) -> Any:
    """For full fine-tuning: a reference that is another model, so that the loss is not where it starts."""
    return changed(adapted(plain(base), seed=9), seed=9).merge_and_unload()


def with_other_reference(policy: Policy, base: Path) -> Policy:
    """The policy, held to that other model."""
    model = reference_of(base)
    model.set_attn_implementation(NAME)
    policy.reference = Policy(model, forest=True)
    return policy


def trainer_of(kind: Any, model: Any, args: Any, rows: Sequence[dict[str, Any]], **more: Any) -> Any:
    """One of TRL's trainers over rows of text that only make it start; what is compared is given to it as tokens."""
    from datasets import Dataset

    trainer = kind(model, args=args, train_dataset=Dataset.from_list(list(rows)), processing_class=oracle(), **more)
    if any("lora_B" in name for name, _ in model.named_parameters()):
        changed(trainer.accelerator.unwrap_model(trainer.model))  # TRL may copy an adapter as the reference
    trainer.model.eval()
    return trainer


def padded(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    """[rows, longest] numbers, padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])
