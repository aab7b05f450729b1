"""Updates of DPO and GRPO beside TRL's: CPU seconds, tokens a CPU second and peak memory, on the same rows and weights.

    python benchmarks/objectives.py [--objectives dpo grpo] [--prompt 256] [--answer 64] [--layers 10] [--repeats 3]

LoRA of rank 8 on all linear layers, float32, one thread. An update is a forward and a backward pass and a step of AdamW
over rows that are given. DPO: four pairs, with a live reference; GRPO: two prompts with eight answers each. The loss
and the norm of the gradient are compared first; where advantages add up to nothing, GRPO's loss is nothing too.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

from bench import material, updates
from bench.agree import refuse
from bench.contestants import in_each_way
from bench.rounds import alternate
from bench.shapes import SHAPES
from bench.side import Side
from bench.table import Column, Group, Told
from bench.training import command, show

COLUMNS = [
    Column("loss", "loss", "损失", 5),
    Column("gradient", "norm of the gradient", "梯度范数", 4),
    Column("cpu", "CPU s an update", "每次更新 CPU 秒", 2),
    Column("cpu", "ratio", "比值", 2, ratio=True),
    Column("speed", "tokens a CPU s", "每 CPU 秒 token", 0),
    Column("memory", "peak GB", "内存峰值 GB", 1, scale=1e-3),
    Column("memory", "ratio", "比值", 2, ratio=True),
]
WITHIN = {"dpo": {"loss": 1e-4, "gradient": 1e-4}, "grpo": {"gradient": 1e-4}}


def measured(asked: argparse.Namespace, objective: str) -> Group:
    """Both sides on one objective.

    Raises:
        SystemExit: they did not do the same work.
    """
    shape = dataclasses.replace(SHAPES[asked.shape], layers=asked.layers)
    rows = updates.drawn(objective, asked.prompt, asked.answer, shape.vocab)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        place = Path(scratch)
        material.model(shape, place / "model")
        updates.write(rows, place)
        settings = {"place": scratch, "objective": objective, "updates": asked.updates}
        own = in_each_way("bench.our_updates:update", settings, {"TUNESMITH_CACHE": str(place / "cache")})
        sides = [*own, Side("TRL", "peers.trl_updates:update", settings, "peer", "trl")]
        told = alternate(sides, asked.repeats, check=lambda found: refuse(found, WITHIN[objective], {}))
    return group(asked, objective, told, rows)


def group(asked: argparse.Namespace, objective: str, told: list[Told], rows: updates.Rows) -> Group:
    """The sides, and what they did, in words."""
    for figures in (figures for side in told for figures in side.rounds if figures):
        figures["speed"] = rows.tokens / figures["cpu"]
    prompts, answers = len(rows.prompts), updates.ANSWERS[objective]
    lengths = (asked.prompt, asked.answer)
    said = (
        f"{objective.upper()}: {prompts} prompts of about {lengths[0]} tokens with {answers} answers of about "
        f"{lengths[1]}, LoRA on {asked.layers} layers of {asked.shape}'s shape with random weights. Tokens are those "
        "of prompts and answers, each prompt once."
    )
    said_zh = (
        f"{objective.upper()}：{prompts} 个约 {lengths[0]} 个 token 的提示，各有 {answers} 个约 {lengths[1]} 个 token "
        f"的回答；{asked.shape} 形状的 {asked.layers} 层，随机权重，LoRA。"
        "token 数是提示和回答的总数，每个提示只计一次。"
    )
    return Group(objective, said, said_zh, COLUMNS, told, command=command())


def main() -> None:
    """Run every objective, print a table each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--objectives", nargs="+", default=list(updates.ANSWERS), choices=list(updates.ANSWERS))
    parser.add_argument("--shape", choices=list(SHAPES), default="smollm2-135m")
    for name, value in (("prompt", 256), ("answer", 64), ("layers", 10), ("updates", 2), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dry", action="store_true", help="print the tables, and keep the figures that are kept")
    asked = parser.parse_args()
    for objective in asked.objectives:
        show("objectives", measured(asked, objective), asked)


if __name__ == "__main__":
    main()
