"""Generation on a CPU beside transformers' `generate`: tokens a CPU second at several batch sizes, and peak memory.

    python benchmarks/generate.py [--shape qwen2.5-0.5b] [--layers 24] [--repeats 3] [--only int8 fp32] [--dry]

Random weights, prompts of 32 random tokens, greedy answers, one thread. In float32 both programs must answer the same,
token for token; of rounded weights it is shown how many of the first tokens are those of plain ones, which says little
on random weights: what rounding does to answers of trained models is measured by `tunesmith evaluate weights=int8`.
vLLM is no side: its wheel on PyPI needs NVIDIA's packages.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from bench import material
from bench.rounds import alternate
from bench.side import Side
from bench.table import Column, Group, Told
from bench.training import chosen, command, options, shape_of, show

BATCHES = ((1, 24), (8, 8), (32, 4))
"""(rows, tokens that are measured of each answer)"""
COMPARED = 12
COLUMNS = [
    *(Column(f"speed_{rows}", f"tokens/CPU s, batch {rows}", f"每 CPU 秒 token，批 {rows}", 1) for rows, _ in BATCHES),
    *(Column(f"speed_{rows}", f"ratio {rows}", f"比值 {rows}", 2, ratio=True) for rows, _ in BATCHES),
    Column("prompt_8", "prompt tokens/CPU s", "每 CPU 秒提示 token", 0),
    Column("once", "8 answers / 1, until the first token", "8 个回答/1 个，到首个 token", 2),
    Column("same", "equal first tokens", "相同的前几个 token", 0),
    Column("memory", "peak GB", "内存峰值 GB", 1, scale=1e-3),
]


def sides(place: Path) -> list[Side]:
    """transformers in both number types, and the engine `local` in its forms."""
    shared: dict[str, Any] = {"place": str(place), "batches": BATCHES, "length": 32, "compared": COMPARED}
    shared |= {"long": 256, "several": 8}
    theirs = [
        Side(f"transformers, {name}", "bench.decoding:hugging", {**shared, "dtype": dtype}, "peer")
        for name, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))
    ]
    forms = (("plain", "plain"), ("ours", "int8"), ("ours", "int4"))
    return theirs + [
        Side(f"tunesmith, {form}", "bench.decoding:ours", {**shared, "dtype": "float32", "weights": form}, kind)  # pyright: ignore[reportArgumentType]
        for kind, form in forms
    ]


def agree(told: list[Told]) -> None:
    """Count the first tokens that each side has in common with transformers in float32; ours in float32 has all.

    Raises:
        SystemExit: it has not.
    """
    first = {side.name: side.rounds[0] for side in told if side.rounds[0]}
    right = (first.get("transformers, fp32") or first.get("tunesmith, plain") or {}).get("answers", [])
    for name, found in first.items():
        pairs = zip(found["answers"], right, strict=False)
        found["same"] = next((place for place, (mine, theirs) in enumerate(pairs) if mine != theirs), len(right))
        if name == "tunesmith, plain" and found["same"] < len(right):
            raise SystemExit(f"not the same answers: {found['answers']} and {right}")


def main() -> None:
    """Measure, print the table, keep the figures."""
    parser = options(__doc__ or "", rows=0)
    parser.set_defaults(shape="qwen2.5-0.5b", repeats=3)
    asked = parser.parse_args()
    shape = shape_of(asked)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        material.model(shape, Path(scratch) / "model")
        told = alternate(chosen(sides(Path(scratch)), asked), asked.repeats, "slowness", check=agree)
    about = f"{shape.layers} layers of {shape.name}'s shape, {shape.parameters / 1e6:.0f} M parameters, random weights"
    said = f"Generation on a CPU, greedy, one thread: {about}, prompts of 32 tokens. Ratios to the better of the peers."
    said_zh = f"CPU 上的生成，贪心，一个线程：{shape.name} 形状的 {shape.layers} 层，随机权重，提示 32 个 token。"
    group = Group("generate", said, said_zh, COLUMNS, told, measure="speed_1", more=True, command=command())
    show("generate", group, asked)


if __name__ == "__main__":
    main()
