"""A training benchmark: material made once, sides on it in turn, the machine's rate before and after, a group.

shape, rows ─▶ model/, rows/, warm/ ─▶ every side: one step over each, of which the second is timed
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from bench import material, rows
from bench.agree import Within, refuse
from bench.rounds import alternate
from bench.shapes import SHAPES, Learns, Shape, flops
from bench.side import Side, run
from bench.table import Column, Group, Told, markdown, write

COLUMNS = [
    Column("loss", "loss", "损失", 5),
    Column("cpu", "CPU s", "CPU 秒", 1),
    Column("cpu", "ratio", "比值", 2, ratio=True),
    Column("speed", "tokens a CPU s", "每 CPU 秒 token", 0),
    Column("share", "of the machine's rate, %", "占机器速率的 %", 0),
    Column("memory", "peak GB", "内存峰值 GB", 1, scale=1e-3),
    Column("memory", "ratio", "比值", 2, ratio=True),
]
SAME: Within = {"loss": 1e-5, "gradient": 1e-3, "learned": 0}
"""Loss and norm of the gradient before anything was learned, and how many tokens are learned."""
ROUGH: Within = {"loss": 1e-3, "learned": 0}
"""For products in bfloat16."""
MACHINE_TOKENS = 2048
"""Rows of the products whose rate stands for the machine's."""
Kind = Literal["instructions", "texts"]


@dataclasses.dataclass(frozen=True)
class Work:
    """What all sides do: rows of a kind, learned by LoRA or by all weights of a shape.

    about, about_zh: the first words of the sentence above the table; system: tokens that all instructions begin with.
    """

    name: str
    about: str
    about_zh: str
    shape: Shape
    learns: Learns
    kind: Kind
    count: int
    system: int = 0

    @property
    def examples(self) -> list[rows.Example]:
        if self.kind == "texts":
            return rows.texts(self.count, self.shape.vocab)
        return rows.instructions(self.count, self.shape.vocab, system=self.system)

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """(context, learned) of each row; the first token of a text has nothing before it."""
        pairs = [(len(row.prompt), len(row.answer)) for row in self.examples]
        return pairs if self.kind == "instructions" else [(1, answer - 1) for _, answer in pairs]

    @property
    def needed(self) -> float:
        """Operations that the step needs at least, where what all rows begin with is computed once."""
        own = [(context - self.system, learned) for context, learned in self.lengths]
        return flops(self.shape, [*own, (self.system, 0)] if self.system else own, self.learns)

    def prepare(self, place: Path) -> None:
        """Write the model and the rows."""
        material.model(self.shape, place / "model")
        for folder in rows.FOLDERS:
            rows.write(self.examples, place / folder)


@dataclasses.dataclass(frozen=True)
class Contest:
    """The work and who does it; loose: bounds for sides whose loss differs by construction, by name."""

    work: Work
    sides: Sequence[Side]
    loose: Mapping[str, Within]

    def measured(self, repeats: int, command: str) -> Group:
        """Run all sides.

        Raises:
            SystemExit: they did not do the same work.
        """
        with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
            place = Path(scratch)
            self.work.prepare(place)
            sides = [self._at(side, place) for side in self.sides]
            before = rate(self.work)
            told = alternate(sides, repeats, check=lambda found: refuse(found, SAME, self.loose))
            best = max(before, rate(self.work))
        return group(self.work, told, best, command)

    def _at(self, side: Side, place: Path) -> Side:
        settings = {"place": str(place), "learns": self.work.learns, **side.settings}
        variables = {"TUNESMITH_CACHE": str(place / "cache"), **side.variables}
        return dataclasses.replace(side, settings=settings, variables=variables)


def rate(work: Work) -> float:
    """GFLOP/s of the products of this work on this machine."""
    tokens, learned = sum(map(sum, work.lengths)), sum(answer for _, answer in work.lengths)
    products = work.shape.products(MACHINE_TOKENS, MACHINE_TOKENS * learned // tokens)
    found = run(Side("machine", "bench.machine:limit", {"products": products}))
    return float(found.figures["gflops"])


def group(work: Work, told: list[Told], gflops: float, command: str) -> Group:
    """The sides with what follows from their time: tokens a second, and the share of the machine's rate."""
    lengths = work.lengths
    tokens, learned = sum(map(sum, lengths)), sum(answer for _, answer in lengths)
    for figures in (figures for side in told for figures in side.rounds if figures):
        figures["speed"] = tokens / figures["cpu"]
        figures["share"] = 100 * work.needed / figures["cpu"] / gflops / 1e9
    facts = {
        "rows": len(lengths),
        "tokens": tokens,
        "learned": learned,
        "gflop": round(work.needed / 1e9),
        "gflops_of_machine": round(gflops, 1),
        "limit_cpu": work.needed / gflops / 1e9,
    }
    said = (
        f"{work.about}: {len(lengths)} rows, {tokens:,} tokens of which {learned:,} are learned, {work.shape.layers} "
        f"layers of {work.shape.name}'s shape with random weights, float32, one thread. The step needs "
        f"{facts['gflop']:,} GFLOP; the machine's products of these shapes run at {gflops:.0f} GFLOP/s, so no program "
        f"can be below {facts['limit_cpu']:.1f} CPU s."
    )
    said_zh = (
        f"{work.about_zh}：{len(lengths)} 行，{tokens:,} 个 token，其中 {learned:,} 个被学习；{work.shape.name} 形状的 "
        f"{work.shape.layers} 层，随机权重，float32，一个线程。这一步至少需要 {facts['gflop']:,} GFLOP；"
        f"这台机器上同样形状的矩阵乘法为 {gflops:.0f} GFLOP/s，所以任何程序都不会低于 {facts['limit_cpu']:.1f} CPU 秒。"
    )
    return Group(work.name, said, said_zh, COLUMNS, told, facts=facts, command=command)


def shape_of(asked: argparse.Namespace) -> Shape:
    """The shape that was asked for, with as many layers as were."""
    shape = SHAPES[asked.shape]
    return dataclasses.replace(shape, layers=asked.layers) if asked.layers else shape


def options(about: str, rows: int) -> argparse.ArgumentParser:
    """The options of a training benchmark."""
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="smollm2-135m")
    parser.add_argument("--layers", type=int, help="instead of as many as the shape has")
    parser.add_argument("--rows", type=int, default=rows)
    parser.add_argument("--repeats", type=int, default=2, help="rounds; far settings of other programs run once")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="sides with one of these words in their name")
    parser.add_argument("--label", metavar="WORD", help="keep the figures beside others of this work, as of a machine")
    parser.add_argument("--dry", action="store_true", help="print the table, and keep the figures that are kept")
    return parser


def chosen(sides: Sequence[Side], asked: argparse.Namespace) -> list[Side]:
    """The sides that were asked for."""
    words: list[str] = asked.only or [""]
    return [side for side in sides if any(word in side.name for word in words)]


def command() -> str:
    """The command that repeats this."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def show(benchmark: str, group: Group, asked: argparse.Namespace) -> None:
    """Print a group's table, and keep its figures unless that was not wanted."""
    print(f"{group.en}\n\n{markdown(group)}\n", flush=True)
    if asked.label:
        group = dataclasses.replace(group, name=f"{group.name}-{asked.label}")
    if not asked.dry:
        print(f"kept in {write(benchmark, [group])}; python -m bench.page puts it into the pages", flush=True)
