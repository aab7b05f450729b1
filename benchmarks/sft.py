"""LoRA fine-tuning on instructions beside transformers + PEFT, TRL and LLaMA-Factory, each by its own trainer.

    python benchmarks/sft.py [--shape smollm2-135m] [--layers 30] [--rows 12] [--repeats 2] [--only tunesmith "batch 1"]
    python benchmarks/sft.py --shape qwen2.5-0.5b --rows 16 --batch 4
    python benchmarks/sft.py --layers 10 --rows 24 --system 100

One step over all rows: rank 8, alpha 16, all linear layers, no dropout, float32, AdamW, one thread. The loss, the norm
of the gradient and the number of learned tokens are compared first. Measured is the trainer's own loop with what it
does beside (collating, clipping, logging), not its start. Sides over an int8 base stand beside them, or with a
system prompt one that computes it for each row.
"""

from __future__ import annotations

from typing import Any

from bench.contestants import BATCH_1, KEPT, PACKED, hugging, llamafactory, ours, trl
from bench.shapes import Shape
from bench.side import Side
from bench.training import ROUGH, Contest, Work, chosen, command, options, shape_of, show

SEEN = "packing, rows see each other"
ROUNDED = [
    Side(f"tunesmith, int8 base{name}", "bench.ours:train", {"model": {"quantize": "int8", "fast": fast}})
    for name, fast in {"": "auto", ", fast long": "long"}.items()
]
APART = Side("tunesmith, prompts apart", "bench.ours:train", {"train": {"share_prefixes": False}}, "plain")
LOOSE = {"TRL, defaults": ROUGH, f"LLaMA-Factory, {SEEN}": {"learned": 0}, **{side.name: ROUGH for side in ROUNDED}}
"""TRL multiplies in bfloat16 by default; where rows see each other the loss is another one; int8 rounds the base."""


def peers(batch: int) -> list[Side]:
    """The settings of the other programs; batch: rows of those that compute several at once, but for defaults (8)."""
    several: dict[str, Any] = {"per_device_train_batch_size": batch}
    return [
        hugging(f"PEFT, batch {batch}", batch=batch),
        hugging("PEFT, batch 1", batch=1),
        trl("defaults", plain=False),
        trl("packing", **PACKED),
        trl("padding-free", padding_free=True, **several),
        trl("batch 1", **BATCH_1),
        llamafactory("defaults"),
        llamafactory("padded, activations kept", **several, **KEPT),
        llamafactory(SEEN, "other", packing=True, cutoff_len=2048, **BATCH_1, **KEPT),
        llamafactory("packing, rows apart", neat_packing=True, cutoff_len=2048, **BATCH_1, **KEPT),
        llamafactory("batch 1", **BATCH_1, **KEPT),
    ]


def work_of(shape: Shape, rows: int, system: int) -> Work:
    """One step over instructions, under a system prompt of so many tokens if any."""
    if not system:
        return Work(shape.name, "LoRA, one step", "LoRA，一步", shape, "lora", "instructions", rows)
    said, said_zh = (
        f"LoRA, one step, {system} tokens of each row a system prompt",
        f"LoRA，一步，每行有 {system} 个 token 的系统提示",
    )
    return Work(f"{shape.name}-system-{system}", said, said_zh, shape, "lora", "instructions", rows, system)


def main() -> None:
    """Measure, print the table, keep the figures."""
    parser = options(__doc__ or "", rows=12)
    parser.add_argument("--batch", type=int, default=8, help="rows of a padded batch; less where memory is short")
    parser.add_argument("--system", type=int, default=0, help="tokens of a system prompt that all rows begin with")
    asked = parser.parse_args()
    work = work_of(shape_of(asked), asked.rows, asked.system)
    beside = [APART] if asked.system else ROUNDED
    sides = chosen([*ours(), *beside, *peers(asked.batch)], asked)
    show("sft", Contest(work, sides, LOOSE).measured(asked.repeats, command()), asked)


if __name__ == "__main__":
    main()
