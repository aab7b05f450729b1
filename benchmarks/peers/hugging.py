"""transformers' Trainer, with PEFT where adapters learn."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from peers.watch import Watch, lora, rows_of, step_of_all


def train(settings: dict[str, Any]) -> dict[str, Any]:
    """One step to warm up, then one that is timed.

    settings: `place`, `learns`; `batch`: rows of a micro-batch; `block`: tokens of the blocks that texts are cut into,
    as transformers' own script for pre-training does (texts then run into each other); `more`: other arguments.
    """
    _once(settings, "warm")
    return _once(settings, "rows").figures


def _once(settings: dict[str, Any], name: str) -> Watch:
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    folder = Path(settings["place"]) / "model"
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    if settings["learns"] == "lora":
        from peft import get_peft_model

        set_seed(0)
        model = get_peft_model(model, lora())
    rows = rows_of(settings, name)
    if settings.get("block"):
        rows = blocks(rows, settings["block"])
    arguments = {
        **step_of_all(settings, name),
        "per_device_train_batch_size": settings["batch"],
        **settings.get("more", {}),
    }
    watch = Watch()
    Trainer(
        model=model,
        args=TrainingArguments(output_dir=f"out-{name}", **arguments),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(folder)),
        callbacks=[watch],
    ).train()
    return watch


def blocks(rows: list[dict[str, list[int]]], size: int) -> list[dict[str, list[int]]]:
    """All texts one after the other, cut into blocks; the last one is shorter, so that no token is lost."""
    tokens = list(itertools.chain.from_iterable(row["input_ids"] for row in rows))
    cut = [tokens[at : at + size] for at in range(0, len(tokens), size)]
    return [{"input_ids": part, "labels": part} for part in cut]
