# pyright: reportPrivateImportUsage=false
"""TRL's side of updates: its trainers' own losses on rows that are given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.updates import Rows, learn, optimizer_of, read, timed, wake

from peers.watch import lora

QUIET = {
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "use_cpu": True,
    "save_strategy": "no",
    "disable_dropout": True,
}
"""What TRL's defaults would change in the numbers, or the cost, is off."""


def update(settings: dict[str, Any]) -> dict[str, float]:
    """Settings: `place`, `objective`, `updates`; perhaps `device` and `dtype`, by default a processor and float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = Path(settings["place"])
    make, inputs = TRAINERS[settings["objective"]]
    model = AutoModelForCausalLM.from_pretrained(place / "model", dtype=settings.get("dtype", "float32"))
    quiet = {**QUIET, "use_cpu": settings.get("device", "cpu") == "cpu"}
    trainer = make(model, AutoTokenizer.from_pretrained(place / "model"), quiet)
    trained = trainer.accelerator.unwrap_model(trainer.model)
    wake(trained)
    trainer.model.train()
    given = {name: value.to(trained.device) for name, value in inputs(read(place)).items()}
    optimizer = optimizer_of(trained)
    return timed(lambda: learn(trainer.compute_loss(trainer.model, given), optimizer), settings["updates"])


def _dpo(model: Any, tokenizer: Any, quiet: dict[str, Any]) -> Any:
    import trl
    from datasets import Dataset

    return trl.DPOTrainer(
        model,
        args=trl.DPOConfig("out", max_length=None, **quiet),
        train_dataset=Dataset.from_list([{"prompt": "t3", "chosen": " t4", "rejected": " t5"}] * 2),
        processing_class=tokenizer,
        peft_config=lora(),
    )


def _dpo_inputs(rows: Rows) -> Any:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    return DataCollatorForPreference(pad_token_id=0)(
        [
            {"prompt_ids": prompt, "chosen_ids": answers[0], "rejected_ids": answers[1]}
            for prompt, answers in zip(rows.prompts, rows.answers, strict=True)
        ]
    )


def _grpo(model: Any, tokenizer: Any, quiet: dict[str, Any]) -> Any:
    import trl
    from datasets import Dataset

    settings = {**quiet, "per_device_train_batch_size": 8, "num_generations": 8, "beta": 0.0, "loss_type": "grpo"}
    trainer = trl.GRPOTrainer(
        model,
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=trl.GRPOConfig("out", **settings),
        train_dataset=Dataset.from_list([{"prompt": "t3"}] * 8),
        processing_class=tokenizer,
        peft_config=lora(),
    )
    trainer.current_gradient_accumulation_steps = 1  # what its loop sets before a step
    return trainer


def _grpo_inputs(rows: Rows) -> Any:
    """Prompts padded on the left, answers on the right, as TRL's own sampling leaves them."""
    import torch

    flat = [(p, a) for p, answers in zip(rows.prompts, rows.answers, strict=True) for a in answers]
    wide, long = max(len(p) for p, _ in flat), max(len(a) for _, a in flat)
    prompt, seen = torch.zeros(len(flat), wide, dtype=torch.long), torch.zeros(len(flat), wide, dtype=torch.long)
    answer, mask = torch.zeros(len(flat), long, dtype=torch.long), torch.zeros(len(flat), long, dtype=torch.long)
    for number, (p, a) in enumerate(flat):
        prompt[number, wide - len(p) :], seen[number, wide - len(p) :] = torch.tensor(p), 1
        answer[number, : len(a)], mask[number, : len(a)] = torch.tensor(a), 1
    given = torch.tensor([value for group in rows.advantages for value in group])
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "num_items_in_batch")
    return dict(zip(names, (prompt, seen, answer, mask, given, mask.sum()), strict=True))


Maker = tuple[Callable[[Any, Any, dict[str, Any]], Any], Callable[[Rows], Any]]
TRAINERS: dict[str, Maker] = {"dpo": (_dpo, _dpo_inputs), "grpo": (_grpo, _grpo_inputs)}
