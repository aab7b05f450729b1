"""LoRA fine-tuning on instructions beside transformers + PEFT, TRL and LLaMA-Factory, each by its own trainer.

    python benchmarks/sft.py [--shape smollm2-135m] [--layers 30] [--rows 12] [--repeats 2] [--only tunesmith "batch 1"]

One step over all rows: rank 8, alpha 16, all linear layers, no dropout, float32, AdamW, one thread. The loss, the norm
of the gradient and the number of learned tokens are compared first. Measured is the trainer's own loop with what it
does beside (collating, clipping, logging), not its start.
"""

from __future__ import annotations

from bench.contestants import BATCH_1, KEPT, PACKED, hugging, llamafactory, ours, trl
from bench.training import ROUGH, Contest, Work, chosen, command, options, shape_of, show

SEEN = "packing, rows see each other"
SIDES = [
    hugging("PEFT, batch 8", batch=8),
    hugging("PEFT, batch 1", batch=1),
    trl("defaults", plain=False),
    trl("packing", **PACKED),
    trl("padding-free", padding_free=True),
    trl("batch 1", **BATCH_1),
    llamafactory("defaults"),
    llamafactory("padded, activations kept", **KEPT),
    llamafactory(SEEN, "other", packing=True, cutoff_len=2048, **BATCH_1, **KEPT),
    llamafactory("packing, rows apart", neat_packing=True, cutoff_len=2048, **BATCH_1, **KEPT),
    llamafactory("batch 1", **BATCH_1, **KEPT),
]
LOOSE = {"TRL, defaults": ROUGH, f"LLaMA-Factory, {SEEN}": {"learned": 0}}
"""TRL multiplies in bfloat16 by default; where rows see each other the loss is another one."""


def main() -> None:
    """Measure, print the table, keep the figures."""
    asked = options(__doc__ or "", rows=12).parse_args()
    shape = shape_of(asked)
    work = Work(shape.name, "LoRA, one step", "LoRA，一步", shape, "lora", "instructions", asked.rows)
    show("sft", Contest(work, chosen([*ours(), *SIDES], asked), LOOSE).measured(asked.repeats, command()), asked)


if __name__ == "__main__":
    main()
