# pyright: reportMissingImports=false
"""LLaMA-Factory's own workflows, called as its command line calls them."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

from peers.watch import LINEARS, Watch, rows_of, step_of_all


def train(settings: dict[str, Any]) -> dict[str, Any]:
    """One step to warm up, then one that is timed.

    settings: `place`, `learns`; `stage`: `sft` or `pt`; `block`: most tokens of the blocks that texts are cut into;
    `more`: other arguments, as in its YAML files.
    """
    without_audio()
    _once(settings, "warm")
    return _once(settings, "rows").figures


def _once(settings: dict[str, Any], name: str) -> Watch:
    from llamafactory.hparams import get_train_args
    from llamafactory.train.pt import run_pt
    from llamafactory.train.sft import run_sft

    watch, stage = Watch(), settings.get("stage", "sft")
    model, data, training, finetuning, generating = get_train_args(arguments(settings, name))
    if stage == "pt":
        run_pt(model, data, training, finetuning, [watch])
    else:
        run_sft(model, data, training, finetuning, generating, [watch])
    return watch


def arguments(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """What its YAML file would hold."""
    place, stage = Path(settings["place"]), settings.get("stage", "sft")
    lora = {"finetuning_type": "lora", "lora_rank": 8, "lora_alpha": 16, "lora_target": ",".join(LINEARS)}
    return {
        "model_name_or_path": str(place / "model"),
        "stage": stage,
        "do_train": True,
        **(lora if settings["learns"] == "lora" else {"finetuning_type": "full"}),
        "dataset_dir": str(place / name),
        "dataset": "texts" if stage == "pt" else "ended",
        "template": "empty",
        "output_dir": str(Path.cwd() / f"out-{name}"),
        "preprocessing_num_workers": 1,
        **step_of_all(settings, name),
        **(blocks(settings, name) if settings.get("block") else {}),
        **settings.get("more", {}),
    }


def blocks(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """Packing into equal blocks that take up all tokens but a few: it leaves out what does not fill one."""
    tokens = sum(len(row["input_ids"]) for row in rows_of(settings, name))
    return {"packing": True, "cutoff_len": tokens // -(-tokens // settings["block"])}


def without_audio() -> None:
    """Let it be imported where torchaudio is not: it names it at its head, and calls it for sound alone."""
    if importlib.util.find_spec("torchaudio") is None:
        module = types.ModuleType("torchaudio")
        module.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
        sys.modules["torchaudio"] = module
