"""The other programs of training benchmarks, and ours, as sides."""

from __future__ import annotations

from typing import Any

from bench.side import Kind, Side

BATCH_1: dict[str, Any] = {"per_device_train_batch_size": 1}
PACKED: dict[str, Any] = {"packing": True, "max_length": 2048}
"""TRL's packing; it keeps rows apart."""
KEPT: dict[str, Any] = {"disable_gradient_checkpointing": True}
"""LLaMA-Factory computes activations a second time unless told not to."""


def ours(**settings: Any) -> list[Side]:
    """tunesmith's training."""
    return in_each_way("bench.ours:train", settings, {})


def in_each_way(work: str, settings: dict[str, Any], variables: dict[str, str]) -> list[Side]:
    """tunesmith as it is, with compiled pieces (`model.fast: long`; compiled before time is taken), and plain."""
    kinds: dict[str, Kind] = {"auto": "ours", "long": "ours", "off": "plain"}
    return [
        Side(
            "tunesmith" if fast == "auto" else f"tunesmith, fast {fast}",
            work,
            {**settings, "model": {**settings.get("model", {}), "fast": fast}},
            kind,
            variables=variables,
        )
        for fast, kind in kinds.items()
    ]


def hugging(name: str, **settings: Any) -> Side:
    """transformers' Trainer; settings: of `peers.hugging`."""
    return Side(f"transformers, {name}", "peers.hugging:train", settings, "peer", "trl")


def trl(name: str, *, plain: bool = True, **more: Any) -> Side:
    """TRL's SFTTrainer; plain: without the bfloat16 products and the recomputing that it turns on by itself."""
    return Side(f"TRL, {name}", "peers.trl_sft:train", {"plain": plain, "more": more}, "peer", "trl")


def llamafactory(name: str, kind: Kind = "peer", stage: str = "sft", block: int | None = None, **more: Any) -> Side:
    """LLaMA-Factory's own workflow; block: most tokens of blocks of texts; more: what its YAML file would hold."""
    settings = {"stage": stage, "block": block, "more": more}
    return Side(f"LLaMA-Factory, {name}", "peers.llamafactory_train:train", settings, kind, "llamafactory")
