"""Losses and gradients of SFT and DPO against TRL's trainers: the same weights, the same tokens, float32.

TRL's defaults that would change the numbers are set off: bf16, checkpointing, truncation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from made_codecs import oracle
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tunesmith.core.plugins import build
from tunesmith.core.rows import TokenRow
from tunesmith.models.attention import NAME
from tunesmith.models.forest import plant
from tunesmith.models.policy import Policy
from tunesmith.objectives import Objective

trl = pytest.importorskip("trl")
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


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert ours
    for name, value in ours.items():
        size = theirs[name].abs().max().clamp_min(1e-4)
        assert (value - theirs[name]).abs().max() <= 3e-4 * size, name


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base"))


def objective_of(value: Any) -> Objective:
    found = build("objective", value)
    assert isinstance(found, Objective)
    return found


def texts(rows: list[TokenRow]) -> list[dict[str, list[int]]]:
    """Rows as TRL takes tokens: ids, and which of them are learned."""
    return [
        {"input_ids": row.trunk.tokens.tolist(), "completion_mask": [int(w > 0) for w in row.trunk.weights]}
        for row in rows
    ]


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_sft(lora: bool, base: Path, tmp_path: Path) -> None:
    rows = [tiny.binary(row) for seed in range(3) for row in tiny.forest_rows(seed=seed) if not row.branches]
    policy, trained = ours(base, lora=lora)
    objective = objective_of("sft")
    batch = plant(rows)
    loss, _ = objective.loss(policy, batch)
    loss = loss / objective.count(batch)
    loss.backward()
    from datasets import Dataset

    model = changed(adapted(plain(base))) if lora else plain(base)
    config = trl.SFTConfig(str(tmp_path), completion_only_loss=True, per_device_train_batch_size=len(rows), **QUIET)
    trainer = trl.SFTTrainer(model, config, train_dataset=Dataset.from_list(texts(rows)), processing_class=oracle())
    inputs = next(iter(trainer.get_train_dataloader()))
    assert int((inputs["labels"][:, 1:] != -100).sum()) == objective.count(batch)
    trainer.model.eval()
    theirs = trainer.compute_loss(trainer.model, inputs)
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert_same(gradients(trained), gradients(trainer.accelerator.unwrap_model(trainer.model)))


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo(lora: bool, beta: float, base: Path, tmp_path: Path) -> None:
    rows = tiny.pair_rows(5, seed=2)
    policy, trained = ours(base, lora=lora)
    objective = objective_of({"dpo": {"beta": beta}})
    batch = plant(rows)
    batch = objective.prepare(policy, batch) if lora else with_other_reference(batch, base)
    loss, figures = objective.loss(policy, batch)
    loss = loss / objective.count(batch)
    loss.backward()
    trainer = dpo_trainer(base, tmp_path, lora, beta)
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    inputs = DataCollatorForPreference(pad_token_id=0)(
        [
            {
                "prompt_ids": row.trunk.tokens.tolist(),
                "chosen_ids": row.branches[0].tokens.tolist(),
                "rejected_ids": row.branches[1].tokens.tolist(),
            }
            for row in rows
        ]
    )
    trainer.model.eval()
    theirs = trainer.compute_loss(trainer.model, inputs)
    theirs.backward()
    assert abs(loss.item() - 0.6931) > 1e-3
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-4)
    assert_same(gradients(trained), gradients(trainer.accelerator.unwrap_model(trainer.model)))
    told = trainer._metrics["eval"]
    assert float(figures["accuracy"]) / len(rows) == pytest.approx(told["rewards/accuracies"][0])
    assert float(figures["chosen"]) / len(rows) == pytest.approx(told["rewards/chosen"][0], rel=1e-3, abs=1e-5)


def reference_of(base: Path) -> Any:
    """For full fine-tuning: a reference that is another model, so that the loss is not ln 2."""
    return changed(adapted(plain(base), seed=9), seed=9).merge_and_unload()


def with_other_reference(batch: Any, base: Path) -> Any:
    model = reference_of(base)
    model.set_attn_implementation(NAME)
    scored = Policy(model, forest=True, off=torch.no_grad)
    return objective_of("dpo").prepare(scored, batch)


def dpo_trainer(base: Path, where: Path, lora: bool, beta: float) -> Any:
    from datasets import Dataset

    rows = [{"prompt": "a", "chosen": " b", "rejected": " c"}] * 2
    trainer = trl.DPOTrainer(
        adapted(plain(base)) if lora else plain(base),
        ref_model=None if lora else reference_of(base),
        args=trl.DPOConfig(str(where), beta=beta, **QUIET),
        train_dataset=Dataset.from_list(rows),
        processing_class=oracle(),
    )
    if lora:  # TRL copies an adapter that it is given as the reference, so the policy's moves only now
        changed(trainer.accelerator.unwrap_model(trainer.model))
    return trainer
