"""EVA: LoRA starts along the directions in which the inputs of its layers vary most.

    A = first r principal directions of a layer's inputs,   B = 0

With ranks by variance, as many directions in all go where they explain most of their layer's variance.
Paischer et al., arXiv:2410.07170.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from peft import PeftModel, initialize_lora_eva_weights
from peft.tuners.lora import LoraLayer
from torch import nn

from tunesmith.core.problem import Problem
from tunesmith.methods import hold_in_float32
from tunesmith.methods._through_peft import heeded, switched_off, wrapped
from tunesmith.models.directions import Directions, principal_inputs
from tunesmith.models.forest import Batch
from tunesmith.models.policy import Policy


def most_components(rank: int) -> int:
    """The highest rank that a layer may get where ranks are spread."""
    return 2 * rank


def start_from_inputs(policy: Policy, batches: Iterator[Batch], *, redistribute: bool) -> None:
    """Put principal directions into the matrices A of a fresh LoRA model.

    Raises:
        Problem: the first steps have too few tokens for the rank.
    """
    trained = wrapped(policy.trained)
    rank: int = trained.peft_config["default"].r  # type: ignore[attr-defined]
    most = most_components(rank) if redistribute else rank
    layers: dict[str, tuple[nn.Module, int]] = {
        name: (layer, min(most, int(layer.in_features or most)))
        for name, layer in trained.named_modules()
        if isinstance(layer, LoraLayer) and isinstance(layer, nn.Module)
    }
    with switched_off(trained), policy.still():
        found = principal_inputs(lambda batch: _read(policy, batch), trained, layers, batches)
    if missing := sorted(layers.keys() - found.keys()):
        raise Problem(
            "method.lora.start",
            f"eva needs {2 * most} tokens or more in the first steps to find {most} directions ({missing[0]})",
            "Use more data, a lower rank, or another start",
        )
    ranks = _spread(found, rank * len(found)) if redistribute else dict.fromkeys(found, rank)
    with heeded("method.lora.start"):
        initialize_lora_eva_weights(trained, eva_state_dict={n: f.vectors[: ranks[n]] for n, f in found.items()})
    hold_in_float32(trained)


def rank_lines(trained: PeftModel) -> list[str]:
    """The rank of each layer, for a person."""
    ranks = {name: layer.r["default"] for name, layer in trained.named_modules() if isinstance(layer, LoraLayer)}
    prefix = "base_model.model."
    gist = f"ranks by variance: {sum(ranks.values())} in {len(ranks)} layers, from {_span(ranks)}"
    return [gist, *(f"{name.removeprefix(prefix)}: rank {rank}" for name, rank in ranks.items())]


def _span(ranks: Mapping[str, int]) -> str:
    return f"{min(ranks.values())} to {max(ranks.values())}"


def _read(policy: Policy, batch: Batch) -> None:
    policy.hidden(batch, batch.targets.source, batch.targets.row)


def _spread(found: Mapping[str, Directions], budget: int) -> dict[str, int]:
    """The rank of each layer, `budget` in all: the directions that explain most of their layer's variance."""
    owners = [name for name, each in found.items() for _ in each.shares]
    shares = torch.cat([each.shares for each in found.values()])
    best = torch.sort(shares, descending=True, stable=True).indices[:budget].tolist()
    chosen = [owners[index] for index in best]
    return {name: chosen.count(name) for name in found}
