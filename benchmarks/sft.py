"""LoRA fine-tuning on instructions beside transformers + PEFT, TRL and LLaMA-Factory, each by its own trainer.

    python benchmarks/sft.py [--shape smollm2-135m] [--layers 30] [--rows 12] [--repeats 2] [--only tunesmith "batch 1"]

One step over all rows: rank 8, alpha 16, all linear layers, no dropout, float32, AdamW, one thread. The loss, the norm
of the gradient and the number of learned tokens are compared first. Measured is the trainer's own loop with what it
does beside (collating, clipping, logging), not its start.
"""

from __future__ import annotations

import sys
from typing import Any

from bench.side import Kind, Side
from bench.training import Contest, Work, chosen, options, ours, shape_of, show

ROUGH = {"loss": 1e-3, "learned": 0}
"""For products in bfloat16."""
OTHER_WORK = {"learned": 0}
"""For packing in which rows see each other: another loss, and no fault of a side."""
LOOSE = {"TRL, defaults": ROUGH, "LLaMA-Factory, packing, rows see each other": OTHER_WORK}
BATCH_1: dict[str, Any] = {"per_device_train_batch_size": 1}
KEPT: dict[str, Any] = {"disable_gradient_checkpointing": True}


def hugging(name: str, **settings: Any) -> Side:
    return Side(f"transformers + PEFT, {name}", "peers.hugging:train", settings, "peer", "trl")


def trl(name: str, *, plain: bool = True, **more: Any) -> Side:
    return Side(f"TRL, {name}", "peers.trl_sft:train", {"plain": plain, "more": more}, "peer", "trl")


def llamafactory(name: str, kind: Kind = "peer", **more: Any) -> Side:
    return Side(f"LLaMA-Factory, {name}", "peers.llamafactory_train:train", {"more": more}, kind, "llamafactory")


SIDES = [
    hugging("batch 8", batch=8),
    hugging("batch 1", batch=1),
    trl("defaults", plain=False),
    trl("packing", packing=True, max_length=2048),
    trl("padding-free", padding_free=True),
    trl("batch 1", **BATCH_1),
    llamafactory("defaults"),
    llamafactory("padded, activations kept", **KEPT),
    llamafactory("packing, rows see each other", "other", packing=True, cutoff_len=2048, **BATCH_1, **KEPT),
    llamafactory("packing, rows apart", neat_packing=True, cutoff_len=2048, **BATCH_1, **KEPT),
    llamafactory("batch 1", **BATCH_1, **KEPT),
]


def main() -> None:
    """Measure, print the table, keep the figures."""
    asked = options(__doc__ or "", rows=12).parse_args()
    shape = shape_of(asked)
    work = Work(shape.name, "LoRA, one step", "LoRA，一步", shape, "lora", "instructions", asked.rows)
    sides = chosen([*ours(), *SIDES], asked)
    show("sft", Contest(work, sides, LOOSE).measured(asked.repeats, command()), asked)


def command() -> str:
    """The command that repeats this."""
    return " ".join(["python", "benchmarks/sft.py", *sys.argv[1:]])


if __name__ == "__main__":
    main()
