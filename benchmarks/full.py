"""Full fine-tuning and pre-training beside transformers, TRL and LLaMA-Factory, each by its own trainer.

    python benchmarks/full.py [--works sft pretrain] [--shape smollm2-135m] [--layers 30] [--rows 8] [--repeats 2]

One step of AdamW over all rows, all weights, float32, one thread. Fine-tuning learns the answers of instructions;
pre-training learns every token of documents. The loss, the norm of the gradient and the number of learned tokens are
compared first. Blocks, transformers' and LLaMA-Factory's way to pre-train, let documents run into each other, so that
their loss is another one by a little, and a few more tokens are learned. LLaMA-Factory leaves out what does not fill a
block, so its blocks are as long as takes up all tokens but one or two; its loss is divided by the first token of each
document too, which nothing predicts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.agree import Within
from bench.contestants import BATCH_1, KEPT, PACKED, hugging, llamafactory, ours, trl
from bench.shapes import Shape
from bench.side import Side
from bench.training import ROUGH, Contest, Work, chosen, command, options, shape_of, show

ROUGHLY: Within = {"loss": 1e-2, "learned": 1e-2}
"""For texts that run into each other, and for a loss that is divided by tokens that nothing predicts too."""
BLOCK = 1024
"""Tokens of the blocks that texts are cut into, at most."""
ROWS_OF_TEXTS = 0.5
"""Documents are longer than instructions: half as many stand for as much work."""


def tuned(shape: Shape, rows: int) -> Contest:
    """Full fine-tuning on instructions."""
    sides = [
        hugging("batch 8", batch=8),
        hugging("batch 1", batch=1),
        trl("defaults", plain=False),
        trl("packing", **PACKED),
        trl("batch 1", **BATCH_1),
        llamafactory("defaults"),
        llamafactory("packing, rows apart", neat_packing=True, cutoff_len=2048, **BATCH_1, **KEPT),
        llamafactory("batch 1", **BATCH_1, **KEPT),
    ]
    work = Work(f"{shape.name}, sft", "All weights, one step", "全部权重，一步", shape, "full", "instructions", rows)
    return contest(work, sides, {"TRL, defaults": ROUGH}, "sft")


def pretrained(shape: Shape, rows: int) -> Contest:
    """Pre-training on documents."""
    documents: dict[str, Any] = {"stage": "pt", "packing": False, "cutoff_len": 2048}
    sides = [
        hugging("blocks of 1,024", batch=1, block=BLOCK),
        hugging("batch 1", batch=1),
        trl("defaults", plain=False),
        trl("packing", **PACKED),
        trl("batch 1", **BATCH_1),
        llamafactory("blocks", stage="pt", block=BLOCK, **BATCH_1, **KEPT),
        llamafactory("batch 8", **documents),
        llamafactory("batch 1", **documents, **BATCH_1, **KEPT),
    ]
    loose = {side.name: ROUGHLY for side in sides if "blocks" in side.name or side.environment == "llamafactory"}
    count = max(2, int(rows * ROWS_OF_TEXTS))
    work = Work(f"{shape.name}, pre-training", "Pre-training, one step", "预训练，一步", shape, "full", "texts", count)
    return contest(work, sides, {**loose, "TRL, defaults": ROUGH}, "pretrain")


def contest(work: Work, sides: Sequence[Side], loose: Mapping[str, Within], objective: str) -> Contest:
    """The work with our sides before the others."""
    return Contest(work, [*ours(objective=objective), *sides], loose)


WORKS: dict[str, Callable[[Shape, int], Contest]] = {"sft": tuned, "pretrain": pretrained}


def main() -> None:
    """Measure, print the tables, keep the figures."""
    parser = options(__doc__ or "", rows=8)
    parser.add_argument("--works", nargs="+", choices=list(WORKS), default=list(WORKS))
    asked = parser.parse_args()
    for name in asked.works:
        whole = WORKS[name](shape_of(asked), asked.rows)
        part = Contest(whole.work, chosen(whole.sides, asked), whole.loose)
        show("full", part.measured(asked.repeats, command()), asked)


if __name__ == "__main__":
    main()
