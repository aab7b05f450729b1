"""How cost grows: rows of the data side, tokens of a row, parameters of the model.

    python benchmarks/scale.py [--works rows tokens parameters] [--large] [--repeats 2] [--dry]

rows        1,000 to 100,000 rows read, checked, tokenised, stored and packed (--large: 1,000,000)
tokens      one LoRA step over 8,192 tokens in rows of 128 to 8,192 tokens, 4 layers
parameters  one LoRA step over 1,024 tokens on models of 10 to 300 million parameters (--large: a billion)

Printed with each is the exponent of the straight line through the logarithms: 1 is cost in proportion. Attention alone
grows with the square of a row's tokens; from the cost of a token, fitted as a + b x length, follows the length at which
it takes a tenth and a half of a step.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import material, rows
from bench.rounds import alternate
from bench.shapes import Shape
from bench.side import Side
from bench.table import Column, Group, Told
from bench.training import command, show
from data import TOKENIZER, write_rows

TOKENS = 8192
LENGTHS = (128, 512, 2048, 8192)
COUNTS = (1_000, 10_000, 100_000)
SHAPES = (
    Shape("10 M", 256, 704, 10, 4, 2, 8192),
    Shape("30 M", 448, 1216, 12, 7, 7, 8192),
    Shape("100 M", 768, 2048, 14, 12, 4, 8192),
    Shape("300 M", 1024, 2816, 26, 16, 8, 8192),
)
BILLION = Shape("1,000 M", 2048, 5632, 21, 32, 8, 8192)
COLUMNS = [
    Column("size", "size", "规模", 0),
    Column("cpu", "CPU s", "CPU 秒", 2),
    Column("each", "µs each", "每个 微秒", 2),
    Column("memory", "peak MB", "内存峰值 MB", 0),
]


def exponent(pairs: Sequence[tuple[float, float]]) -> float:
    """The slope of the straight line through the logarithms of (size, cost)."""
    return line([(math.log(size), math.log(cost)) for size, cost in pairs])[1]


def line(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(a, b) of the line a + b x with the least squares."""
    middle = sum(x for x, _ in pairs) / len(pairs)
    height = sum(y for _, y in pairs) / len(pairs)
    slope = sum((x - middle) * (y - height) for x, y in pairs) / sum((x - middle) ** 2 for x, _ in pairs)
    return height - slope * middle, slope


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        yield Path(scratch)


def over_rows(asked: argparse.Namespace) -> Group:
    """The data side over more and more rows."""
    counts = (*COUNTS, 1_000_000) if asked.large else COUNTS
    with folder() as place:
        for count in counts:
            (place / str(count)).mkdir()
            shutil.copytree(TOKENIZER, place / str(count) / "model", ignore=shutil.ignore_patterns("*.safetensors"))
            write_rows(count, place / str(count))
        sides = [
            Side(f"{count:,} rows", "bench.preparing:ours", {"place": str(place / str(count)), "processes": 1})
            for count in counts
        ]
        told = alternate(sides, asked.repeats)
    facts = {"exponent": _sized(told, counts, counts)}
    said = f"Instructions to packed tokens, one process; cost grows with rows to the power {facts['exponent']:.2f}."
    said_zh = f"指令数据到打包好的 token，单进程；成本随行数的 {facts['exponent']:.2f} 次方增长。"
    return Group("rows", said, said_zh, COLUMNS, told, facts=facts, command=command())


def over_tokens(asked: argparse.Namespace) -> Group:
    """A step over as many tokens in longer and longer rows."""
    shape = Shape("4 layers of 576", 576, 1536, 4, 9, 3, 8192)
    with folder() as place:
        material.model(shape, place / "model")
        sides = [_step(place, shape, f"{length:,} tokens a row", length, TOKENS // length) for length in LENGTHS]
        told = alternate(sides, asked.repeats)
    _sized(told, LENGTHS, [TOKENS] * len(LENGTHS))
    each = [(float(length), side.median("each") or 0.0) for length, side in zip(LENGTHS, told, strict=True)]
    base, slope = line(each)
    facts = {"tenth": base / slope / 9, "half": base / slope} if slope > 0 else {}
    where = f"attention takes a tenth of a step from {facts['tenth']:,.0f} tokens a row, half from {facts['half']:,.0f}"
    where_zh = f"每行 {facts['tenth']:,.0f} 个 token 时注意力占一步的十分之一，{facts['half']:,.0f} 个时占一半"
    said = f"LoRA, one step over {TOKENS:,} tokens, {shape.name}: {where}."
    said_zh = f"LoRA，一步共 {TOKENS:,} 个 token，{shape.name}：{where_zh}。"
    return Group("tokens of a row", said, said_zh, COLUMNS, told, facts=facts, command=command())


def over_parameters(asked: argparse.Namespace) -> Group:
    """A step over the same rows on larger and larger models."""
    shapes = (*SHAPES, BILLION) if asked.large else SHAPES
    with folder() as place:
        sides: list[Side] = []
        for shape in shapes:
            material.model(shape, place / shape.name / "model")
            sides.append(_step(place / shape.name, shape, f"{shape.name} parameters", 256, 4))
        told = alternate(sides, asked.repeats)
    sizes = [shape.parameters for shape in shapes]
    facts = {"exponent": _sized(told, sizes, [1024] * len(sizes))}
    said = f"LoRA, one step over 1,024 tokens; cost grows with parameters to the power {facts['exponent']:.2f}."
    said_zh = f"LoRA，一步共 1,024 个 token；成本随参数量的 {facts['exponent']:.2f} 次方增长。"
    return Group("parameters", said, said_zh, COLUMNS, told, facts=facts, command=command())


def _step(place: Path, shape: Shape, name: str, length: int, count: int) -> Side:
    """A side that trains one step over `count` rows of `length` tokens, of which a half is learned."""
    half = length // 2
    draw = rows.instructions(1, shape.vocab)[0].prompt
    prompt = tuple(draw[at % len(draw)] for at in range(half))
    row = rows.Example(prompt, (*prompt[: length - half - 1], rows.END))
    own = place / str(length)
    rows.write([row] * count, own / "rows")
    rows.write([rows.Example(prompt[:16], (*prompt[:15], rows.END))] * 2, own / "warm")
    if not (own / "model").exists():
        (own / "model").symlink_to(place / "model")
    settings: dict[str, Any] = {"place": str(own), "learns": "lora", "train": {"max_tokens": 8192}}
    return Side(name, "bench.ours:train", settings, variables={"TUNESMITH_CACHE": str(own / "cache")})


def _sized(told: Sequence[Told], sizes: Sequence[int], items: Sequence[int]) -> float:
    """Put the size and the cost of an item to all rounds; returns the exponent of cost over size."""
    for side, size, count in zip(told, sizes, items, strict=True):
        for figures in filter(None, side.rounds):
            figures |= {"size": size, "each": figures["cpu"] / count * 1e6}
    pairs = [(float(size), side.median("cpu")) for side, size in zip(told, sizes, strict=True)]
    return exponent([(size, cost) for size, cost in pairs if cost])


WORKS: dict[str, Callable[[argparse.Namespace], Group]] = {
    "rows": over_rows,
    "tokens": over_tokens,
    "parameters": over_parameters,
}


def main() -> None:
    """Measure, print the tables, keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--works", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--large", action="store_true", help="also a million rows, and a billion parameters")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--dry", action="store_true", help="print the tables, and keep the figures that are kept")
    asked = parser.parse_args()
    for name in asked.works:
        show("scale", WORKS[name](asked), asked)


if __name__ == "__main__":
    main()
