# pyright: reportMissingImports=false, reportPrivateImportUsage=false
"""Unsloth: its own model and adapter under TRL's SFTTrainer, which it patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def train(settings: dict[str, Any]) -> dict[str, Any]:
    """One step to warm up, then one that is timed; settings: `place`; `more`: arguments of SFTConfig."""
    _once(settings, "warm")
    return _once(settings, "rows")


def _once(settings: dict[str, Any], name: str) -> dict[str, Any]:
    import trl
    import unsloth  # it has to come before transformers and TRL, which it changes
    from datasets import Dataset

    from peers.watch import LINEARS, Watch, rows_of, step_of_all

    folder = str(Path(settings["place"]) / "model")
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        folder, max_seq_length=2048, dtype=None, load_in_4bit=False
    )
    model = unsloth.FastLanguageModel.get_peft_model(
        model,
        r=8,
        lora_alpha=16,
        lora_dropout=0,
        target_modules=LINEARS,
        bias="none",
        use_gradient_checkpointing=False,
    )
    arguments = {**step_of_all(settings, name), "use_cpu": False, "max_length": 2048, **settings.get("more", {})}
    watch = Watch()
    trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(output_dir=f"out-{name}", **arguments),
        train_dataset=Dataset.from_list(rows_of(settings, name)),
        processing_class=tokenizer,
        callbacks=[watch],
    ).train()
    return watch.figures
