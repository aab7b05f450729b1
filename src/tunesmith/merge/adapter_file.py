# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
"""Write changes of weights as a LoRA adapter that PEFT loads; it appears under its name when it is whole."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from tunesmith.core.problem import Problem
from tunesmith.core.rundir import sync_folder, write_json
from tunesmith.merge.factors import Factors
from tunesmith.merge.lowrank import PREFIX
from tunesmith.models.load import load_codec, save_tokenizer
from tunesmith.models.source import Found

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def write_adapter(
    folder: Path, changes: Mapping[str, Factors], source: Found, *, transposed: bool = False, task: str = "CAUSAL_LM"
) -> None:
    """Save an adapter over a base; alpha is each layer's rank, so that nothing is scaled when it is loaded.

    changes: by the name of the base's weight, in the shape [out, in]; source: whose base and tokenizer it goes with;
    transposed: whether the base holds these weights as [in, out].

    Raises:
        Problem: the folder exists already.
    """
    if folder.exists():
        raise Problem(str(folder), "exists already", "Choose another --output, or remove the folder")
    staging = folder.with_name(f".{folder.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        save_file(_tensors(changes), staging / WEIGHTS, metadata={"format": "pt"})
        write_json(staging / CONFIG, _config(changes, source.name, transposed, task))
        save_tokenizer(load_codec(source), source, staging)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    sync_folder(folder.parent)


def _tensors(changes: Mapping[str, Factors]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, change in changes.items():
        module = PREFIX + name.removesuffix(".weight")
        out[f"{module}.lora_A.weight"] = change.down.contiguous()
        out[f"{module}.lora_B.weight"] = change.up.contiguous()
    return out


def _config(changes: Mapping[str, Factors], base: str, transposed: bool, task: str) -> dict[str, Any]:
    ranks = {name.removesuffix(".weight"): change.rank for name, change in changes.items()}
    usual = max(ranks.values())
    others = {module: rank for module, rank in ranks.items() if rank != usual}
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": others,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": transposed,
        "target_modules": sorted(ranks),
    }
