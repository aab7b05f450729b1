"""What the plan says of layers that learn in turn, against what a real backward pass holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from saved_bytes import kept_bytes
from torch import nn

from tunesmith.core.plugins import build
from tunesmith.core.rows import Piece, TokenRow
from tunesmith.methods import Method
from tunesmith.models.attention import NAME
from tunesmith.models.forest import Batch
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy
from tunesmith.optimizers import OptimizerSpec, named
from tunesmith.train.rehearsal import Place
from tunesmith.train.survey import Memory, survey

SIZES = {"num_hidden_layers": 8, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def kept(model: nn.Module, batch: Batch) -> int:
    """Bytes that autograd keeps for the backward pass, weights left out."""
    policy = Policy(model, forest=True)
    return kept_bytes(model, lambda: policy.hidden(batch, batch.targets.source, batch.targets.row))


def planned(spec: OptimizerSpec, method: Method) -> Memory:
    with torch.device("meta"):
        outline = tiny.model("llama", **SIZES)
    return survey(outline, method, spec, place=Place(fast="off"), tokens=256, row=64, checkpointing=False).memory


@pytest.mark.parametrize(
    "options", [{"badam": {"every": 1}}, {"lisa": {"layers": 2, "every": 1}}], ids=["badam", "lisa"]
)
def test_the_plan_knows_what_the_heaviest_step_spares(options: dict[str, Any]) -> None:
    """Against AdamW, since what attention keeps depends on its kernel."""
    spec, plain, method = build("optimizer", options), build("optimizer", "adamw"), build("method", "full")
    assert isinstance(spec, OptimizerSpec)
    assert isinstance(plain, OptimizerSpec)
    assert isinstance(method, Method)
    model = tiny.model("llama", **SIZES)
    model.config._attn_implementation = NAME
    trained = method.apply(model).train()
    batch = plant([TokenRow(Piece(np.zeros(64, np.int32), np.ones(64, np.float32))) for _ in range(4)])
    whole = kept(model, batch)
    optimizer = spec.build(named(method.groups(trained, spec.lr), trained))
    seen, gradients = [], []
    for step in range(16):
        spec.before_step(optimizer, step)
        seen.append(kept(model, batch))
        gradients.append(sum(4 * weight.numel() for weight in model.parameters() if weight.requires_grad))
    found, usual = planned(spec, method), planned(plain, method)
    assert usual.activations - found.activations == pytest.approx(whole - max(seen), rel=0.02)
    assert whole - max(seen) > 0.1 * whole
    assert found.gradients == max(gradients) < usual.gradients / 2
    assert found.learns == usual.learns == usual.gradients
