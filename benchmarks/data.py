"""From a file of instructions to packed tokens, beside LLaMA-Factory's own preparation and transformers alone.

    python benchmarks/data.py [--rows 52000] [--tokenizer FOLDER] [--repeats 2] [--only WORD …] [--dry]

Every side reads the same file and writes the same chats with the same tokenizer: ChatML, at most 1,024 tokens a row.
Tokens are counted and compared first; the few longer rows are cut, but by transformers alone. The rows are real ones
where `../shared/data` is beside the repository, and made from words at random in their lengths where it is not; they
are repeated with a number each until there are as many as asked for, so that no two are equal.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.agree import refuse
from bench.rounds import alternate
from bench.side import ROOT, Side
from bench.table import Column, Group
from bench.training import chosen, command, show

REAL = ROOT.parent / "shared" / "data" / "benchmarks" / "alpaca_en_demo.json"
TOKENIZER = ROOT / "src" / "tunesmith" / "builtin" / "seedling"
COLUMNS = [
    Column("tokens", "tokens", "token 数", 0),
    Column("cpu", "CPU s", "CPU 秒", 1),
    Column("cpu", "ratio", "比值", 2, ratio=True),
    Column("wall", "wall s", "用时 秒", 1),
    Column("each", "CPU µs a row", "每行 CPU 微秒", 0),
    Column("memory", "peak MB", "内存峰值 MB", 0),
]
TURN = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
)
TASK = {"packing": False}
PACKED = {"packing": True, "neat_packing": True}


def sides() -> list[Side]:
    """Ours with one process and with one a core; LLaMA-Factory as it is, packing, and with more rows a batch."""
    many = {"TOKENIZERS_PARALLELISM": "true"}
    loop = {"template": TURN}
    return [
        Side("tunesmith", "bench.preparing:ours", {"processes": 1}),
        Side("tunesmith, a process a core", "bench.preparing:ours", {"processes": None}),
        Side("LLaMA-Factory, packing", "peers.llamafactory_data:data", {"more": PACKED}, "peer", "llamafactory"),
        Side("LLaMA-Factory, no packing", "peers.llamafactory_data:data", {"more": TASK}, "peer", "llamafactory"),
        Side("transformers, a row at a time", "bench.preparing:template", loop, "plain", variables=many),
    ]


def write_rows(count: int, place: Path) -> None:
    """The rows as columns of instructions, and LLaMA-Factory's register of them."""
    known = json.loads(REAL.read_text("utf-8")) if REAL.is_file() else [*itertools.islice(made(), 1000)]
    names = ("instruction", "input", "output")
    with (place / "rows.json").open("w", encoding="utf-8") as file:
        for number in range(count):
            row = {name: known[number % len(known)].get(name, "") for name in names}
            row["output"] += f" ({number})"
            file.write(("[" if number == 0 else ",\n") + json.dumps(row, ensure_ascii=False))
        file.write("]\n")
    (place / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}))


def made(seed: int = 7) -> Iterator[dict[str, str]]:
    """Rows of words drawn at random, as long as real ones."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(5000)]
    while True:
        asked, answer = draw.randint(8, 16), draw.randint(3, 240)
        yield {
            "instruction": " ".join(draw.choices(words, k=asked)),
            "input": "",
            "output": " ".join(draw.choices(words, k=answer)) + ".",
        }


def main() -> None:
    """Measure, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=52_000)
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="a folder with tokenizer.json")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", nargs="+", metavar="WORD", help="sides with one of these words in their name")
    parser.add_argument("--dry", action="store_true", help="print the table, and keep the figures that are kept")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        place = Path(scratch)
        shutil.copytree(asked.tokenizer, place / "model", ignore=shutil.ignore_patterns("*.safetensors"))
        if not (place / "model" / "config.json").is_file():
            shutil.copy(TOKENIZER / "config.json", place / "model")
        write_rows(asked.rows, place)
        here = [dataclasses.replace(side, settings={"place": scratch, **side.settings}) for side in sides()]
        told = alternate(chosen(here, asked), asked.repeats, check=lambda found: refuse(found, {"tokens": 5e-3}, {}))
    for figures in (figures for side in told for figures in side.rounds if figures):
        figures["each"] = figures["cpu"] / asked.rows * 1e6
    kind = "real ones, repeated" if REAL.is_file() else "made"
    said = (
        f"{asked.rows:,} rows of instructions ({kind}) read, checked, written as ChatML, tokenised and packed into "
        f"micro-batches of 1,024 tokens; transformers alone neither checks, masks, stores nor packs."
    )
    said_zh = (
        f"{asked.rows:,} 行指令数据：读取、检查、写成 ChatML、分词、打包成 1,024 token 的微批；"
        f"单用 transformers 时不检查、不做掩码、不存储、不打包。"
    )
    show("data", Group("data", said, said_zh, COLUMNS, told, command=command()), asked)


if __name__ == "__main__":
    main()
