# pyright: reportPrivateImportUsage=false
"""TRL's SFTTrainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peers.watch import Watch, lora, rows_of, step_of_all

PLAIN = {"bf16": False, "gradient_checkpointing": False}
"""Off what TRL turns on by itself: products in bfloat16, and activations computed a second time."""


def train(settings: dict[str, Any]) -> dict[str, Any]:
    """One step to warm up, then one that is timed.

    settings: `place`, `learns`; `plain`: whether `PLAIN` is set; `more`: other arguments of SFTConfig; perhaps `load`,
    arguments of the model's `from_pretrained` instead of float32.
    """
    _once(settings, "warm")
    return _once(settings, "rows").figures


def _once(settings: dict[str, Any], name: str) -> Watch:
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(settings["place"]) / "model"
    plain = PLAIN if settings.get("plain") else {}
    arguments = {**step_of_all(settings, name), "max_length": None, **plain, **settings.get("more", {})}
    watch = Watch()
    trainer = trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, **settings.get("load", {"dtype": "float32"})),
        args=trl.SFTConfig(f"out-{name}", **arguments),
        train_dataset=Dataset.from_list(rows_of(settings, name)),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=lora() if settings["learns"] == "lora" else None,
        callbacks=[watch],
    )
    trainer.train()
    return watch
