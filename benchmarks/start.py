"""How long it takes to start: commands that answer at once, and runs until their first step.

    python benchmarks/start.py [--shape smollm2-135m] [--layers 30] [--repeats 3] [--no-peers] [--dry]

CPU seconds of the whole process, imports among them. A run trains a LoRA on 48 rows that were tokenised before; its
model lies on the disk with random weights. Before its first step tunesmith hashes the weights, tries the model on a
probe, counts what the run will take, and looks at the data that is kept; the other programs do none of this.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bench import material, rows
from bench.rounds import alternate
from bench.side import Side, run
from bench.table import Column, Group
from bench.training import command, shape_of, show

COLUMNS = [
    Column("cpu", "CPU s", "CPU 秒", 2),
    Column("cpu", "ratio", "比值", 2, ratio=True),
    Column("memory", "peak MB", "内存峰值 MB", 0),
]
COMMANDS = {
    "tunesmith --help": ("-m", "tunesmith.cli", "--help"),
    "tunesmith train --help": ("-m", "tunesmith.cli", "train", "--help"),
    "tunesmith explain sft": ("-m", "tunesmith.cli", "explain", "sft"),
}
IMPORTS = ("torch", "transformers.trainer", "peft", "trl.trainer.sft_trainer")


def commands(peers: bool) -> list[Side]:
    """Our commands that need no model, beside imports of the libraries that other programs begin with."""
    ours = [Side(name, "bench.starting:command", {"arguments": words}) for name, words in COMMANDS.items()]
    theirs = [
        Side(f"import {name}", "bench.starting:command", {"arguments": ("-c", f"import {name}")}, "peer", "trl")
        for name in IMPORTS
    ]
    return ours + (theirs if peers else [])


def runs(place: str, peers: bool) -> list[Side]:
    """Runs until their first step."""
    told = {"place": place, "learns": "lora"}
    cache = {"TUNESMITH_CACHE": f"{place}/cache"}
    ours = [Side("tunesmith", "bench.starting:ours", told, variables=cache)]
    theirs = [
        _peer("transformers and PEFT", "peers.hugging", "trl", {**told, "batch": 1}),
        _peer("TRL", "peers.trl_sft", "trl", {**told, "plain": True}),
        _peer("LLaMA-Factory", "peers.llamafactory_train", "llamafactory", told),
    ]
    return ours + (theirs if peers else [])


def _peer(name: str, program: str, environment: str, settings: dict[str, object]) -> Side:
    return Side(name, "bench.starting:peer", {**settings, "program": program}, "peer", environment)


def main() -> None:
    """Measure, print the tables, keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", default="smollm2-135m")
    parser.add_argument("--layers", type=int, help="instead of as many as the shape has")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-peers", action="store_true", help="measure tunesmith alone")
    parser.add_argument("--dry", action="store_true", help="print the tables, and keep the figures that are kept")
    asked = parser.parse_args()
    told = alternate(commands(not asked.no_peers), asked.repeats)
    said = "Commands that need no model, beside imports that other programs begin with."
    show(
        "start",
        Group("commands", said, "不需要模型的命令，以及其他程序开头的导入。", COLUMNS, told, command=command()),
        asked,
    )
    shape = shape_of(asked)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        place = Path(scratch)
        material.model(shape, place / "model")
        for name, count in (("rows", 48), ("warm", 2)):
            rows.write(rows.instructions(count, shape.vocab), place / name)
        sides = runs(scratch, not asked.no_peers)
        run(sides[0])  # tokenises the rows
        told = alternate(sides, asked.repeats)
    about = f"{shape.layers} layers of {shape.name}'s shape, {shape.parameters / 1e6:.0f} M parameters"
    said = f"From the command to the first step: LoRA on {about}, rows that were tokenised before."
    said_zh = f"从命令到第一步：在 {shape.name} 形状（{shape.layers} 层）上训练 LoRA，数据已分好词。"
    show("start", Group("first step", said, said_zh, COLUMNS, told, command=command()), asked)


if __name__ == "__main__":
    main()
