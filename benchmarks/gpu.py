"""Training on an NVIDIA GPU in bfloat16, beside TRL with packing, padding-free batches and Liger, and Unsloth.

    python benchmarks/gpu.py [--work sft dpo grpo] [--shapes qwen2.5-0.5b llama-3.1-8b] [--rows 384] [--repeats 3]
    python benchmarks/gpu.py --device cpu --shapes tiny --layers 2 --rows 6 --dry         (its own code, without a GPU)

LoRA of rank 8 on all linear layers, activations kept. SFT: a step over all rows, in batches of as many tokens for all;
DPO and GRPO: updates over rows that are given. Losses are compared first, within what bfloat16 rounds. Measured is wall
time until the GPU has done its work, and the most that was held on it. Each lever of `model.fast` for GPUs is a side.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import gpu, material, rows, updates
from bench.agree import Within, refuse
from bench.environments import python_of
from bench.rounds import alternate
from bench.shapes import SHAPES, Shape, flops
from bench.side import Side, run
from bench.table import Column, Group, Told
from bench.training import MACHINE_TOKENS, command, show

COLUMNS = [
    Column("loss", "loss", "损失", 4),
    Column("wall", "s", "秒", 3),
    Column("wall", "ratio", "比值", 2, ratio=True),
    Column("speed", "tokens a s", "每秒 token", 0),
    Column("share", "of the card's rate, %", "占显卡速率的 %", 0),
    Column("gpu_memory", "peak GB on the card", "显存峰值 GB", 1, scale=1e-3),
    Column("gpu_memory", "ratio", "比值", 2, ratio=True),
]
LARGE = {
    shape.name: shape
    for shape in (
        Shape("llama-3.2-1b", 2048, 8192, 16, 32, 8, 128_256),
        Shape("llama-3.1-8b", 4096, 14_336, 32, 32, 8, 128_256, head_width=128),
    )
}
WITHIN: dict[str, Within] = {"sft": {"loss": 2e-2, "learned": 0}, "dpo": {"loss": 5e-2}, "grpo": {"gradient": 5e-2}}
LEVERS: dict[str, Any] = {
    "": "auto",
    ", fast off": "off",
    ", attention alone": ["attention"],
    ", attention and compile": ["lora", "mlp", "attention", "compile"],
}
"""What follows the name of our side, and `model.fast` there."""


def main() -> None:
    """Measure each shape and each kind of work; without a GPU say so."""
    asked = options().parse_args()
    if asked.device == "cuda" and not gpu.is_there():
        print("no NVIDIA GPU is here, so nothing was measured; --device cpu --dry tries the code", file=sys.stderr)
        raise SystemExit(2)
    if asked.device == "cpu" and not asked.dry:
        print("figures of a processor are not those of a GPU: add --dry", file=sys.stderr)
        raise SystemExit(2)
    for name in asked.shapes:
        shape = {**SHAPES, **LARGE}[name]
        shape = dataclasses.replace(shape, layers=asked.layers) if asked.layers else shape
        for work in asked.work:
            show("gpu", measured(asked, shape, work), asked)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", nargs="+", default=list(WITHIN), choices=list(WITHIN))
    parser.add_argument("--shapes", nargs="+", default=["qwen2.5-0.5b"], choices=[*SHAPES, *LARGE])
    parser.add_argument("--layers", type=int, help="instead of as many as the shape has")
    for name, value in (("rows", 384), ("tokens", 8192), ("prompt", 1024), ("answer", 256), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="sides with one of these words in their name")
    parser.add_argument("--dry", action="store_true", help="print the tables, and keep the figures that are kept")
    return parser


def measured(asked: argparse.Namespace, shape: Shape, work: str) -> Group:
    """All sides on one kind of work.

    Raises:
        SystemExit: they did not do the same work.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        place = Path(scratch)
        material.model(shape, place / "model", dtype=dtype_of(asked))
        lengths = prepare(asked, shape, work, place)
        sides = [at(side, place) for side in chosen(asked, [*ours(asked, work), *peers(asked, work)])]
        told, sides = missing(sides)
        gflops = rate(asked, shape, lengths)
        told = [*alternate(sides, asked.repeats, "wall", check=lambda found: refuse(found, WITHIN[work], {})), *told]
    return group(asked, shape, work, told, lengths, gflops)


def prepare(asked: argparse.Namespace, shape: Shape, work: str, place: Path) -> list[tuple[int, int]]:
    """Write the rows; returns (context, learned) of each sequence, a prompt that answers share counted once."""
    if work == "sft":
        examples = rows.instructions(asked.rows, shape.vocab)
        for folder in rows.FOLDERS:
            rows.write(examples, place / folder)
        return [(len(row.prompt), len(row.answer)) for row in examples]
    drawn = updates.drawn(work, asked.prompt, asked.answer, shape.vocab)
    updates.write(drawn, place)
    first = [(len(prompt), len(answers[0])) for prompt, answers in zip(drawn.prompts, drawn.answers, strict=True)]
    return [*first, *((0, len(answer)) for answers in drawn.answers for answer in answers[1:])]


def ours(asked: argparse.Namespace, work: str) -> list[Side]:
    """tunesmith with each choice of levers; those for a GPU alone are left out on a processor."""
    out = []
    for name, fast in LEVERS.items():
        if asked.device == "cpu" and isinstance(fast, list):
            continue
        model = {"device": asked.device, "dtype": dtype_of(asked), "fast": fast}
        settings: dict[str, Any] = {"model": model, "objective": work, "learns": "lora"}
        settings |= {"train": {"tokens_per_batch": asked.tokens}} if work == "sft" else {"updates": 5}
        task = "bench.ours:train" if work == "sft" else "bench.our_updates:update"
        out.append(Side(f"tunesmith{name}", task, settings, "plain" if fast == "off" else "ours"))
    return out


def peers(asked: argparse.Namespace, work: str) -> list[Side]:
    """The other programs, on a GPU."""
    if asked.device == "cpu":
        return []
    if work != "sft":
        settings = {"objective": work, "updates": 5, "device": "cuda", "dtype": "bfloat16"}
        return [Side("TRL", "peers.trl_updates:update", settings, "peer", "gpu")]
    batch = {"per_device_train_batch_size": max(1, asked.tokens // 2048), "max_length": 2048}
    packed, apart = {**batch, "packing": True}, {"per_device_train_batch_size": 32, "padding_free": True}
    liger, flash = {"use_liger_kernel": True}, "flash_attention_2"
    return [
        trl("packing", "gpu", packed),
        trl("packing, Liger", "gpu", {**packed, **liger}),
        trl("packing, Liger, flash-attn", "gpu_flash", {**packed, **liger}, flash),
        trl("padding-free, Liger, flash-attn", "gpu_flash", {**apart, **liger}, flash),
        Side("Unsloth", "peers.unsloth_sft:train", {"more": {**packed, "bf16": True}}, "peer", "unsloth"),
    ]


def trl(name: str, environment: str, more: dict[str, Any], attention: str = "sdpa") -> Side:
    """TRL's SFTTrainer in bfloat16, with activations kept."""
    load = {"dtype": "bfloat16", "attn_implementation": attention}
    more = {"bf16": True, "gradient_checkpointing": False, "use_cpu": False, **more}
    settings = {"learns": "lora", "load": load, "more": more}
    return Side(f"TRL, {name}", "peers.trl_sft:train", settings, "peer", environment)


def chosen(asked: argparse.Namespace, sides: list[Side]) -> list[Side]:
    return [side for side in sides if any(word in side.name for word in asked.only or [""])]


def at(side: Side, place: Path) -> Side:
    """The side with what was prepared for all."""
    variables = {"TUNESMITH_CACHE": str(place / "cache"), **side.variables}
    return dataclasses.replace(side, settings={"place": str(place), **side.settings}, variables=variables)


def missing(sides: list[Side]) -> tuple[list[Told], list[Side]]:
    """The sides whose environments cannot be made here, with the reason, and the others."""
    faults: dict[str, str] = {}
    for name in {side.environment for side in sides}:
        try:
            python_of(name)
        except subprocess.CalledProcessError as error:
            faults[name] = f"did not run: its packages cannot be installed here (pip ended with {error.returncode})"
    lost = [Told(side.name, side.kind, fault=faults[side.environment]) for side in sides if side.environment in faults]
    return lost, [side for side in sides if side.environment not in faults]


def rate(asked: argparse.Namespace, shape: Shape, lengths: list[tuple[int, int]]) -> float:
    """GFLOP/s of the products of this work on the device."""
    tokens, learned = sum(map(sum, lengths)), sum(answer for _, answer in lengths)
    products = shape.products(MACHINE_TOKENS, MACHINE_TOKENS * learned // tokens)
    settings = {"products": products, "device": asked.device, "dtype": dtype_of(asked)}
    return float(run(Side("machine", "bench.gpu:limit", settings)).figures["gflops"])


def group(
    asked: argparse.Namespace,
    shape: Shape,
    work: str,
    told: list[Told],
    lengths: list[tuple[int, int]],
    gflops: float,
) -> Group:
    """The sides with what follows from their time: tokens a second, and the share of the card's rate."""
    tokens, needed, card = sum(map(sum, lengths)), flops(shape, lengths, "lora"), gpu.name_of(asked.device)
    for figures in (figures for side in told for figures in side.rounds if figures):
        figures["speed"] = tokens / figures["wall"]
        figures["share"] = 100 * needed / figures["wall"] / gflops / 1e9
    said = (
        f"{work.upper()} with LoRA on {card}, {dtype_of(asked)}: {tokens:,} tokens, each prompt once; {shape.layers} "
        f"layers of {shape.name}'s shape with random weights. The card's products of these shapes run at "
        f"{gflops / 1e3:.1f} TFLOP/s."
    )
    said_zh = (
        f"{card} 上的 {work.upper()} LoRA，{dtype_of(asked)}：{tokens:,} 个 token，每个提示只计一次；"
        f"{shape.name} 形状的 {shape.layers} 层，随机权重。这张显卡上同样形状的矩阵乘法为 {gflops / 1e3:.1f} TFLOP/s。"
    )
    facts = {"tokens": tokens, "gflop": round(needed / 1e9), "gflops_of_card": round(gflops, 1)}
    name = f"{work}-{shape.name}"
    return Group(name, said, said_zh, COLUMNS, told, measure="wall", facts=facts, command=command())


def dtype_of(asked: argparse.Namespace) -> str:
    """bfloat16 on a GPU; on a processor, where only the code is tried, float32."""
    return "bfloat16" if asked.device == "cuda" else "float32"


if __name__ == "__main__":
    main()
