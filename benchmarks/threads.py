"""How much faster two threads train than one: wall and CPU seconds of the same step, in turn, a fresh process each.

    python benchmarks/threads.py [--shape smollm2-135m] [--layers 30] [--rows 24] [--threads 1 2] [--repeats 3] [--dry]

To be run on an idle machine: wall time is what is compared. `serial` is the share of the step that does not spread
over threads, by Amdahl's law from the speed-up: with n threads and a share s the time is s + (1 - s) / n. `at most` is
the work of all threads over that of the busiest one, which says on a busy machine too how evenly the step is spread.
Threads wait as under the command `tunesmith`: for microseconds awake, then asleep. `--spin` lets them spin as long as
OpenMP does if it is not told otherwise: where something else runs they hold each other up, and it counts as CPU time.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from bench.side import Side, run
from bench.table import Column, Group, Told
from bench.training import Work, command, options, shape_of, show

COLUMNS = [
    Column("wall", "wall s", "用时 秒", 2),
    Column("wall", "ratio", "比值", 2, ratio=True),
    Column("speedup", "times as fast", "加速比", 2),
    Column("serial", "serial, %", "串行部分 %", 0),
    Column("bound", "at most, times", "上限（倍）", 2),
    Column("cpu", "CPU s", "CPU 秒", 2),
    Column("loss", "loss", "损失", 5),
]


def measured(work: Work, threads: list[int], repeats: int, *, spin: bool) -> list[Told]:
    """The step with each number of threads in turn; the first number is what the others are compared with."""
    told = {count: Told(f"{count} {'thread' if count == 1 else 'threads'}", "ours") for count in threads}
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        place = Path(scratch)
        work.prepare(place)
        settings = {"place": scratch, "learns": work.learns, "spin": spin}
        variables = {"TUNESMITH_CACHE": f"{scratch}/cache"}
        side = Side("tunesmith", "bench.spread:train", settings, variables=variables)
        for turn in range(repeats):
            for count in threads if turn % 2 == 0 else reversed(threads):
                found = run(side, count)
                told[count].rounds.append(found.figures)
                told[count].versions = found.versions
    _compare(told, threads)
    return list(told.values())


def _compare(told: dict[int, Told], threads: list[int]) -> None:
    """Put the speed-up and the serial share that follows from it to each round."""
    base = told[threads[0]].rounds
    for count in threads[1:]:
        for mine, alone in zip(told[count].rounds, base, strict=True):
            if mine and alone:
                mine["speedup"] = alone["wall"] / mine["wall"]
                more = count / threads[0]
                mine["serial"] = 100 * (more / mine["speedup"] - 1) / (more - 1)


def main() -> None:
    """Measure, print the table, keep the figures."""
    parser = options(__doc__ or "", rows=24)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--spin", action="store_true", help="threads that wait spin before they sleep")
    asked = parser.parse_args()
    shape = shape_of(asked)
    work = Work(f"{shape.name}, threads", "LoRA, one step", "LoRA，一步", shape, "lora", "instructions", asked.rows)
    told = measured(work, asked.threads, asked.repeats, spin=asked.spin)
    tokens = sum(map(sum, work.lengths))
    said = f"LoRA, one step over {asked.rows} rows ({tokens:,} tokens), {shape.layers} layers of {shape.name}'s shape."
    said_zh = f"LoRA，一步，{asked.rows} 行（{tokens:,} 个 token），{shape.name} 形状的 {shape.layers} 层。"
    base = told[0].name
    show("threads", Group(work.name, said, said_zh, COLUMNS, told, "wall", base=base, command=command()), asked)
    for side in told[1:]:
        values = [figures["speedup"] for figures in side.rounds if figures]
        print(f"{side.name}: {statistics.median(values):.2f} times {base}", flush=True)


if __name__ == "__main__":
    main()
