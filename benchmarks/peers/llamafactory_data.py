# pyright: reportMissingImports=false
"""LLaMA-Factory's own way from a file of rows to tokens and labels, packed or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.work import Clock

from peers.llamafactory_train import without_audio


def data(settings: dict[str, Any]) -> dict[str, Any]:
    """Read, render, tokenise and perhaps pack, so that rows are packs.

    settings: `place`; `more`: other arguments, as in its YAML files.
    """
    without_audio()
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    model, given, training, *_ = get_train_args(arguments(settings))
    parts = load_tokenizer(model)
    template = get_template_and_fix_tokenizer(parts["tokenizer"], given)
    clock = Clock()
    with clock:
        found = get_dataset(template, model, given, training, stage="sft", **parts)["train_dataset"]
    tokens = sum(sum(1 for seen in row if seen) for row in found["attention_mask"])
    return {"rows": len(found), "tokens": tokens, **clock.figures}


def arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """What its YAML file would hold."""
    place = Path(settings["place"])
    return {
        "model_name_or_path": str(place / "model"),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "dataset_dir": str(place),
        "dataset": "rows",
        "template": "chatml",
        "cutoff_len": 1024,
        "overwrite_cache": True,
        "use_cpu": True,
        "report_to": "none",
        "output_dir": str(Path.cwd() / "out"),
        **settings.get("more", {}),
    }
