"""Sequence to sequence under LoRA: a padded batch of transformers with PEFT's adapter on it, losses and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq
from transformers.trainer_pt_utils import LabelSmoother

from tunesmith.methods.lora import Lora
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy
from tunesmith.objectives.seq2seq import Seq2seq


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("family", ["t5", "mt5", "bart"])
def test_lora_learns_what_it_learns_in_transformers(family: str, smoothing: float, tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base", family)
    method = Lora(rank=4, start="gaussian", dropout=0.0)
    policy, trained = adapted(method, base)
    rows = [row for row in tiny.sides_rows() if len(row.branches) == 1]
    batch, objective = plant(rows), Seq2seq(label_smoothing=smoothing)
    loss = objective.loss(policy, batch)[0] / objective.count(batch)
    loss.backward()
    method.save(trained, tmp_path / "adapter")
    plain = AutoModelForSeq2SeqLM.from_pretrained(base)
    theirs = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"), is_trainable=True).eval()
    expected = own_loss(theirs, AutoTokenizer.from_pretrained(base), rows, smoothing)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    ours, other = gradients(trained), gradients(theirs)
    assert ours
    assert ours.keys() == other.keys()
    for name, value in ours.items():
        assert (value - other[name]).abs().max() <= 1e-3 * other[name].abs().max().clamp_min(1e-4), name
    sides = {"encoder" in name for name in ours}
    assert sides == {True, False}, "both sides of the model learn"


def adapted(method: Lora, base: Path) -> tuple[Policy, Any]:
    """A model with an adapter whose change is not zero."""
    model = AutoModelForSeq2SeqLM.from_pretrained(base).eval()
    trained = method.apply(model)
    torch.manual_seed(1)
    for name, weight in trained.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.05)
    return Policy(model, forest=False, trained=trained), trained


def own_loss(model: Any, tokenizer: Any, rows: Any, smoothing: float) -> Tensor:
    """The mean over all tokens of one padded batch, as transformers' collator and its loss have it."""
    features = [{"input_ids": row.trunk.tokens.tolist(), "labels": row.branches[0].tokens.tolist()} for row in rows]
    batch = DataCollatorForSeq2Seq(tokenizer, model=model.get_base_model())(features)
    assert (batch["attention_mask"] == 0).any(), "some prompts are padded"
    out = model(**batch)
    assert (batch["labels"] == -100).any(), "some answers are padded"
    return LabelSmoother(smoothing)({"logits": out.logits}, batch["labels"]) if smoothing else out.loss
