"""How cost grows: rows of the data side, tokens of a row, parameters of the model.

    python benchmarks/scale.py [--works rows tokens parameters] [--large] [--repeats 1] [--dry]

rows        1,000 to 100,000 rows read, checked, tokenised, stored and packed (--large: 1,000,000)
tokens      one LoRA step over 8,192 tokens in rows of 128 to 8,192 tokens, 4 layers
parameters  one LoRA step over 1,024 tokens on models of 10 to 300 million parameters (--large: a billion)

Told with each is the exponent of the straight line through the logarithms: 1 is cost in proportion. Attention alone
grows with the square of a row's tokens; from the cost of a token, fitted as a + b x length, follows the length at which
it takes a tenth and a half of a step.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bench import material, rows
from bench.growth import points
from bench.rounds import alternate
from bench.shapes import Shape, flops
from bench.side import Side
from bench.table import Column, Group, Told
from bench.training import command, show
from data import REAL, TOKENIZER, write_rows

TOKENS = 8192
LENGTHS = (128, 512, 2048, 8192)
DEEP = Shape("4 layers of 576", 576, 1536, 4, 9, 3, 8192)
COUNTS = (1_000, 10_000, 100_000)
SHAPES = (
    Shape("10 M", 256, 704, 10, 4, 2, 8192),
    Shape("30 M", 448, 1216, 12, 7, 7, 8192),
    Shape("100 M", 768, 2048, 14, 12, 4, 8192),
    Shape("300 M", 1024, 2816, 26, 16, 8, 8192),
)
BILLION = Shape("1,000 M", 2048, 5632, 21, 32, 8, 8192)
LENGTH, BATCH = 256, 4
"""Tokens of a row and rows of a step where models grow."""
CPU = Column("cpu", "CPU s", "CPU 秒", 2)
RATE = Column("rate", "GFLOP/s", "GFLOP/s", 0)
MEMORY = Column("memory", "peak MB", "内存峰值 MB", 0)
Size = TypeVar("Size")


def exponent(told: Iterable[Told]) -> float:
    """The slope of the straight line through the logarithms of size and cost."""
    return line([(math.log(size), math.log(cost)) for size, cost in points(told, "cost")])[1]


def line(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(a, b) of the line a + b x with the least squares."""
    middle = sum(x for x, _ in pairs) / len(pairs)
    height = sum(y for _, y in pairs) / len(pairs)
    slope = sum((x - middle) * (y - height) for x, y in pairs) / sum((x - middle) ** 2 for x, _ in pairs)
    return height - slope * middle, slope


def over_rows(asked: argparse.Namespace, place: Path) -> Group:
    """The data side over more and more rows."""
    counts = (*COUNTS, 1_000_000) if asked.large else COUNTS
    sides = [_prepared(place / str(count), count) for count in counts]
    told = alternate(sides, asked.repeats)
    for figures, count in _rounds(told, counts):
        figures |= {"size": count, "cost": figures["cpu"], "each": figures["cpu"] / count * 1e6}
    power = exponent(told)
    (least, before), *_, (most, held) = points(told, "memory")
    facts = {"exponent": power, "bytes_a_row": (held - before) * 1e6 / (most - least)}
    kind, kind_zh = ("real ones, repeated", "真实数据，重复") if REAL.is_file() else ("made", "合成")
    said = (
        f"Rows of instructions ({kind}) read, checked, tokenised, stored and packed by one process: cost grows with "
        f"rows to the power {power:.2f}, the peak of memory by {facts['bytes_a_row']:,.0f} bytes a row."
    )
    said_zh = (
        f"指令数据（{kind_zh}）由单进程读取、检查、分词、存储、打包：成本随行数的 {power:.2f} 次方增长，"
        f"内存峰值每行增加 {facts['bytes_a_row']:,.0f} 字节。"
    )
    each = Column("each", "CPU µs a row", "每行 CPU 微秒", 0)
    return Group("rows", said, said_zh, [CPU, each, MEMORY], told, facts=facts, command=command(), across="size")


def over_tokens(asked: argparse.Namespace, place: Path) -> Group:
    """A step over as many tokens in longer and longer rows."""
    material.model(DEEP, place / "model")
    sides = [_step(place, DEEP, f"{length:,} tokens a row", length, TOKENS // length) for length in LENGTHS]
    told = alternate(sides, asked.repeats)
    for figures, length in _rounds(told, LENGTHS):
        figures |= {"size": length, "cost": figures["cpu"] * length / TOKENS, "each": figures["cpu"] / TOKENS * 1e6}
        figures["rate"] = _flops(DEEP, length, TOKENS // length) / figures["cpu"] / 1e9
    base, slope = line(points(told, "each"))
    facts = {"exponent": exponent(told), "base": base, "slope": slope, "tenth": base / slope / 9, "half": base / slope}
    said = (
        f"LoRA, one step over {TOKENS:,} tokens, {DEEP.name}: the cost of a row grows with its tokens to the power "
        f"{facts['exponent']:.2f}; attention takes a tenth of a step from {facts['tenth']:,.0f} tokens a row, half "
        f"from {facts['half']:,.0f}."
    )
    said_zh = (
        f"LoRA，一步共 {TOKENS:,} 个 token，4 层，宽 576：一行的成本随其 token 数的 {facts['exponent']:.2f} 次方增长；"
        f"每行 {facts['tenth']:,.0f} 个 token 起注意力占一步的十分之一，{facts['half']:,.0f} 个起占一半。"
    )
    columns = [
        CPU,
        Column("each", "CPU µs a token", "每 token CPU 微秒", 0),
        Column("cost", "CPU s a row", "每行 CPU 秒", 3),
        RATE,
        MEMORY,
    ]
    return Group("tokens of a row", said, said_zh, columns, told, facts=facts, command=command(), across="size")


def over_parameters(asked: argparse.Namespace, place: Path) -> Group:
    """A step over the same rows on larger and larger models."""
    shapes = (*SHAPES, BILLION) if asked.large else SHAPES
    sides: list[Side] = []
    for shape in shapes:
        material.model(shape, place / shape.name / "model")
        sides.append(_step(place / shape.name, shape, f"{shape.name} parameters", LENGTH, BATCH))
    told = alternate(sides, asked.repeats)
    for figures, shape in _rounds(told, shapes):
        figures |= {"size": shape.parameters, "cost": figures["cpu"]}
        figures["rate"] = _flops(shape, LENGTH, BATCH) / figures["cpu"] / 1e9
    power, tokens = exponent(told), LENGTH * BATCH
    said = f"LoRA, one step over {tokens:,} tokens: cost grows with parameters to the power {power:.2f}."
    said_zh = f"LoRA，一步共 {tokens:,} 个 token：成本随参数量的 {power:.2f} 次方增长。"
    columns, facts = [CPU, RATE, MEMORY], {"exponent": power}
    return Group("parameters", said, said_zh, columns, told, facts=facts, command=command(), across="size")


def _prepared(place: Path, count: int) -> Side:
    """A side that makes so many rows ready to be learned."""
    place.mkdir()
    shutil.copytree(TOKENIZER, place / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    write_rows(count, place)
    return Side(f"{count:,} rows", "bench.preparing:ours", {"place": str(place), "processes": 1})


def _step(place: Path, shape: Shape, name: str, length: int, count: int) -> Side:
    """A side that trains one step over `count` rows of `length` tokens, of which a half is learned."""
    half = length // 2
    draw = rows.instructions(1, shape.vocab)[0].prompt
    prompt = tuple(draw[at % len(draw)] for at in range(half))
    row = rows.Example(prompt, (*prompt[: length - half - 1], rows.END))
    own = place / str(length)
    for folder in rows.FOLDERS:
        rows.write([row] * count, own / folder)
    if not (own / "model").exists():
        (own / "model").symlink_to(place / "model")
    settings: dict[str, Any] = {"place": str(own), "learns": "lora", "train": {"max_tokens": TOKENS}}
    return Side(name, "bench.ours:train", settings, variables={"TUNESMITH_CACHE": str(own / "cache")})


def _flops(shape: Shape, length: int, count: int) -> int:
    """What a side's step needs at least."""
    return flops(shape, [(length - length // 2, length // 2)] * count, "lora")


def _rounds(told: Sequence[Told], sizes: Sequence[Size]) -> list[tuple[dict[str, Any], Size]]:
    """The figures of every round with the size of their side."""
    return [(figures, size) for side, size in zip(told, sizes, strict=True) for figures in side.rounds if figures]


WORKS: dict[str, Callable[[argparse.Namespace, Path], Group]] = {
    "rows": over_rows,
    "tokens": over_tokens,
    "parameters": over_parameters,
}


def main() -> None:
    """Measure, print the tables, keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--works", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--large", action="store_true", help="also a million rows, and a billion parameters")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--dry", action="store_true", help="print the tables, and keep the figures that are kept")
    asked = parser.parse_args()
    for name in asked.works:
        with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
            group = WORKS[name](asked, Path(scratch))
        show("scale", group, asked)


if __name__ == "__main__":
    main()
