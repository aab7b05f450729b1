"""Updates of DPO and GRPO beside TRL's: CPU seconds, tokens a CPU second and peak memory, on the same rows and weights.

    python benchmarks/objectives.py [--objectives dpo grpo] [--prompt 256] [--answer 64] [--repeats 3]

A model of SmolLM2-135M's shape with random weights, LoRA of rank 8 on all linear layers, float32, one thread. Each side
runs in processes of its own, alternately; a process learns once before it is timed. The losses of both sides are
compared first: a faster wrong answer does not count. Only rows are given: nothing is sampled while time is taken.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

SHAPE: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
}
LEARNT = 1e-4
"""By how much losses, and norms of gradients, may differ, relative to their size."""
ANSWERS = {"dpo": 2, "grpo": 8}
PROMPTS = {"dpo": 4, "grpo": 2}
SIDES = ("trl", "tunesmith")


@dataclass(frozen=True)
class Rows:
    """Token ids: prompts [rows][length] and the answers of each [rows][answers][length]."""

    prompts: list[list[int]]
    answers: list[list[list[int]]]

    @property
    def tokens(self) -> int:
        """Tokens of all prompts and answers, each counted once."""
        return sum(map(len, self.prompts)) + sum(len(answer) for row in self.answers for answer in row)


@dataclass(frozen=True)
class Found:
    """What one process measured: loss and norm of the gradient before it learned, CPU seconds of an update, peak MB."""

    loss: float
    norm: float
    cpu: float
    memory: float


Update = Callable[[], tuple[float, float]]
"""Forward, backward and a step of AdamW; returns the loss before it and the norm of its gradient."""


def rows_of(options: argparse.Namespace) -> Rows:
    """Random rows; lengths differ by up to a tenth, as real ones never are equal."""
    import numpy as np

    draw = np.random.default_rng(7)

    def text(size: int) -> list[int]:
        length = int(size * draw.uniform(0.9, 1.0))
        return [int(token) for token in draw.integers(3, SHAPE["vocab_size"], length)]

    name, count = options.objective, PROMPTS[options.objective]
    prompts = [text(options.prompt) for _ in range(count)]
    return Rows(prompts, [[text(options.answer) for _ in range(ANSWERS[name])] for _ in range(count)])


def advantages(rows: Rows) -> list[list[float]]:
    """Made-up advantages of each answer; a group's sum is zero."""
    return [[(number % 2) * 2.0 - 1.0 for number in range(len(answers))] for answers in rows.answers]


def model_of(layers: int) -> Any:
    """The model with its random weights, the same in every process."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **{**SHAPE, "num_hidden_layers": layers}))


def wake(trained: Any) -> None:
    """Give every adapter a change, so that no gradient is zero; both sides name LoRA's weights alike."""
    import torch

    draw = torch.Generator().manual_seed(1)
    for name, weight in sorted(trained.named_parameters()):
        if weight.requires_grad:
            with torch.no_grad():
                weight.copy_(torch.randn(weight.shape, generator=draw) * (0.02 if "lora_B" in name else 0.05))


def ours(options: argparse.Namespace, rows: Rows) -> Update:
    """An update as the training loop makes it."""
    import torch

    from tunesmith.core.plugins import build
    from tunesmith.methods.lora import Lora
    from tunesmith.models.policy import Policy
    from tunesmith.models.probe import choose_attention

    model = model_of(options.layers)
    verdict = choose_attention(model, "auto")
    method = Lora(rank=8, alpha=16, dropout=0.0)
    trained = method.apply(model)
    wake(trained)
    policy = Policy(model, forest=verdict.forest, trained=trained, off=lambda: method.off(trained))
    objective: Any = build("objective", OURS[options.objective])
    batch = BATCHES[options.objective](rows)
    optimizer = torch.optim.AdamW([weight for weight in trained.parameters() if weight.requires_grad], lr=1e-4)

    def update() -> tuple[float, float]:
        (group,) = objective.round(policy, [batch], 0).groups if not objective.online else ([batch],)
        loss = sum(objective.loss(policy, part)[0] for part in group) / sum(objective.count(part) for part in group)
        return learn(loss, optimizer)

    return update


def learn(loss: Any, optimizer: Any) -> tuple[float, float]:
    """Backward and step; the loss and the norm of its gradient."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    square = sum(float(weight.grad.square().sum()) for group in optimizer.param_groups for weight in group["params"])
    optimizer.step()
    return float(loss.detach()), square**0.5


def pairs(rows: Rows) -> Any:
    """The rows as a forest: each prompt with its answers."""
    import numpy as np

    from tunesmith.core.rows import Piece, TokenRow
    from tunesmith.models.forest import plant

    def piece(tokens: list[int], weight: float) -> Piece:
        return Piece(np.array(tokens, np.int32), np.full(len(tokens), weight, np.float32))

    return plant(
        [
            TokenRow(piece(prompt, 0.0), tuple(piece(answer, 1.0) for answer in answers), index=number)
            for number, (prompt, answers) in enumerate(zip(rows.prompts, rows.answers, strict=True))
        ]
    )


def groups(rows: Rows) -> Any:
    """The same with the numbers that a round gives each answer; each answer counts the same."""
    import torch

    batch = pairs(rows)
    lengths = torch.tensor([float(len(answer)) for row in rows.answers for answer in row])
    gain = torch.tensor([value for group in advantages(rows) for value in group])
    for name, value in (("length", lengths), ("advantage", gain), ("share", 1 / lengths)):
        batch = batch.with_extra(name, value)
    return batch


def theirs(options: argparse.Namespace, rows: Rows) -> Update:
    """An update as TRL's trainer makes it."""
    import torch

    with tempfile.TemporaryDirectory() as scratch:
        trainer = TRAINERS[options.objective](model_of(options.layers), Path(scratch))
    trained = trainer.accelerator.unwrap_model(trainer.model)
    wake(trained)
    trainer.model.train()
    inputs = INPUTS[options.objective](rows)
    optimizer = torch.optim.AdamW([weight for weight in trained.parameters() if weight.requires_grad], lr=1e-4)
    return lambda: learn(trainer.compute_loss(trainer.model, inputs), optimizer)


def quiet() -> dict[str, Any]:
    """What TRL's defaults would change in the numbers or the cost is off."""
    return {
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_dropout": True,
    }


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def tokenizer() -> Any:
    from transformers import AutoTokenizer

    from tunesmith import builtin

    return AutoTokenizer.from_pretrained(builtin.path("seedling"))


def dpo_trainer(model: Any, place: Path) -> Any:
    import trl
    from datasets import Dataset

    settings = {**quiet(), "max_length": None}
    rows = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}] * 2)
    return trl.DPOTrainer(
        model,
        args=trl.DPOConfig(str(place), **settings),
        train_dataset=rows,
        processing_class=tokenizer(),
        peft_config=lora(),
    )


def dpo_inputs(rows: Rows) -> Any:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    return DataCollatorForPreference(pad_token_id=0)(
        [
            {"prompt_ids": prompt, "chosen_ids": answers[0], "rejected_ids": answers[1]}
            for prompt, answers in zip(rows.prompts, rows.answers, strict=True)
        ]
    )


def grpo_trainer(model: Any, place: Path) -> Any:
    import trl
    from datasets import Dataset

    settings = {**quiet(), "per_device_train_batch_size": 8, "num_generations": 8, "beta": 0.0, "loss_type": "grpo"}
    trainer = trl.GRPOTrainer(
        model,
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=trl.GRPOConfig(str(place), **settings),
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 8),
        processing_class=tokenizer(),
        peft_config=lora(),
    )
    trainer.current_gradient_accumulation_steps = 1  # what its loop sets before a step
    return trainer


def grpo_inputs(rows: Rows) -> Any:
    """Prompts padded on the left, answers on the right, as TRL's own sampling leaves them."""
    import torch

    flat = [(p, a) for p, answers in zip(rows.prompts, rows.answers, strict=True) for a in answers]
    wide, long = max(len(p) for p, _ in flat), max(len(a) for _, a in flat)
    prompt, seen = torch.zeros(len(flat), wide, dtype=torch.long), torch.zeros(len(flat), wide, dtype=torch.long)
    answer, mask = torch.zeros(len(flat), long, dtype=torch.long), torch.zeros(len(flat), long, dtype=torch.long)
    for number, (p, a) in enumerate(flat):
        prompt[number, wide - len(p) :], seen[number, wide - len(p) :] = torch.tensor(p), 1
        answer[number, : len(a)], mask[number, : len(a)] = torch.tensor(a), 1
    given = torch.tensor([value for group in advantages(rows) for value in group])
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "num_items_in_batch")
    return dict(zip(names, (prompt, seen, answer, mask, given, mask.sum()), strict=True))


OURS: dict[str, Any] = {"dpo": "dpo", "grpo": {"grpo": {"normalise": "answer", "beta": 0.0}}}
BATCHES: dict[str, Callable[[Rows], Any]] = {"dpo": pairs, "grpo": groups}
TRAINERS = {"dpo": dpo_trainer, "grpo": grpo_trainer}
INPUTS = {"dpo": dpo_inputs, "grpo": grpo_inputs}


def work(options: argparse.Namespace) -> Found:
    """Measure one side in this process."""
    import torch

    torch.set_num_threads(1)
    rows = rows_of(options)
    update = (ours if options.side == "tunesmith" else theirs)(options, rows)
    loss, norm = update()
    start = time.process_time()
    for _ in range(options.updates):
        update()
    cpu = (time.process_time() - start) / options.updates
    return Found(loss, norm, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measured(options: argparse.Namespace, objective: str, side: str) -> Found:
    """One side in a process of its own.

    Raises:
        RuntimeError: it failed.
    """
    sizes = [f"--{name}={getattr(options, name)}" for name in ("prompt", "answer", "layers", "updates")]
    command = [sys.executable, __file__, "--side", side, "--objective", objective, *sizes]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return Found(**json.loads(done.stdout.splitlines()[-1]))


def compare(options: argparse.Namespace, objective: str) -> None:
    """Run both sides in turn and print a row each.

    Raises:
        SystemExit: their losses or gradients differ.
    """
    found: dict[str, list[Found]] = {side: [] for side in SIDES}
    for _ in range(options.repeats):
        for side in SIDES:
            found[side].append(measured(options, objective, side))
    for name, least in (("loss", 1e-1), ("norm", 1e-3)):
        one, other = (getattr(found[side][0], name) for side in SIDES)
        if abs(one - other) > LEARNT * max(abs(one), least):
            raise SystemExit(f"{objective}: {name} differs, {one} and {other}")
    tokens = rows_of(argparse.Namespace(**{**vars(options), "objective": objective})).tokens
    base = {name: statistics.median(getattr(one, name) for one in found["trl"]) for name in ("cpu", "memory")}
    for side in SIDES:
        cpu, memory = (statistics.median(getattr(one, name) for one in found[side]) for name in ("cpu", "memory"))
        first = found[side][0]
        figures = f"{first.loss:.5f} | {first.norm:.5f} | {cpu:.2f} | {tokens / cpu:,.0f} | {memory:,.0f}"
        print(
            f"| {objective} | {side} | {figures} | {cpu / base['cpu']:.2f} | {memory / base['memory']:.2f} |",
            flush=True,
        )


def heading(options: argparse.Namespace) -> str:
    """Date, machine, how busy it is, and the head of a Markdown table."""
    import peft
    import torch
    import trl

    versions = f"TRL {trl.__version__}, PEFT {peft.__version__}, torch {torch.__version__}"
    busy = f"load {os.getloadavg()[0]:.1f} at the start"
    lengths = f"prompts of {options.prompt} tokens, answers of {options.answer}"
    about = f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, {busy}; {versions}; {lengths}"
    columns = (
        "objective",
        "",
        "loss",
        "gradient",
        "CPU s an update",
        "tokens a CPU s",
        "peak MB",
        "CPU ratio",
        "memory ratio",
    )
    return f"{about}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}"


def main() -> None:
    """Run every objective, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--objectives", nargs="+", default=list(ANSWERS), choices=list(ANSWERS))
    for name, value in (("prompt", 256), ("answer", 64), ("layers", 30), ("updates", 2), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--objective", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(asdict(work(options))))
        return
    print(heading(options), flush=True)
    for objective in options.objectives:
        compare(options, objective)


if __name__ == "__main__":
    main()
