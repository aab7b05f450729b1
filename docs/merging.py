"""The worked example of docs/merging.md: two fine-tunes of the embedded base, merged and measured.

    python docs/merging.py            whatever is not there yet, and then the pages
    python docs/merging.py --pages    only the pages, from what is in runs/merging

    reviews ─▶ rows of two tasks ─▶ two runs ─┬─▶ four merges ─────────────────────┬─▶ evaluate, a table a task ─▶ pages
                                              └─▶ mixture ─▶ a run of its routers ─┘

Run it from anywhere; all it makes is in runs/merging. The reviews are public, are not part of this repository, and are
looked for beside it. The pages say where figures go, in comments that readers do not see: <!-- merging: NAME -->.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refresh import DOCS, ROOT, fill

HOME = Path("runs/merging")
REVIEWS = ROOT.parent / "shared" / "data" / "benchmarks" / "zh_product_reviews.jsonl.gz"
PAGES = (DOCS / "merging.md", DOCS / "merging.zh.md")

TASKS = {"sentiment": "{text}\n这条评论是好评还是差评？", "goods": "{text}\n这条评论说的是哪类商品？"}
TRAINED, TESTED, LONGEST = 1500, 300, 60
MEASURED = 200
"""Rows of each task, those that are measured, and the longest review in characters; no review is used twice."""

METHODS = ("linear", "slerp", "ties", "dare_ties")
MIXTURES = ("mixture", "routed")
COLUMNS = ("builtin:seedling", *TASKS, *METHODS, *MIXTURES)
SHOWN = ("accuracy", "perplexity")


def main() -> None:
    """Make what is missing, and write the pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pages", action="store_true", help="only write the pages")
    os.chdir(ROOT)
    if not parser.parse_args().pages:
        make()
    fill(PAGES, "merging", lambda name, _: block(name))


def make() -> None:
    """Everything that is not there yet, each by a command of tunesmith."""
    draw_rows()
    for task in TASKS:
        tunesmith(HOME / task / "model", "train", DOCS / "runs" / f"merging-{task}.yaml")
    for method in (*METHODS, "mixture"):
        tunesmith(HOME / method, "merge", DOCS / "runs" / f"merging-{method.replace('_', '-')}.yaml", HOME / method)
    tunesmith(HOME / "routed" / "model", "train", DOCS / "runs" / "merging-routed.yaml")
    first, *others = (str(place(column)) for column in COLUMNS)
    for task, prompt in TASKS.items():
        beside = [word for name in others for word in ("--beside", name)]
        options = [
            "--data",
            HOME / f"{task}-test.jsonl",
            "--prompt",
            prompt,
            "--max-rows",
            MEASURED,
            "-o",
            HOME / f"on-{task}",
        ]
        tunesmith(HOME / f"on-{task}", "evaluate", first, *beside, *options)


def place(column: str) -> Path | str:
    """Where a model of the table is."""
    return column if ":" in column else HOME / column


def tunesmith(made: Path, *words: object) -> None:
    """Run a command, unless what it makes is there."""
    if made.exists():
        return
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "tunesmith", *(str(word) for word in words)]
    subprocess.run(command, check=True, env=surroundings)


def draw_rows() -> None:
    """Rows of both tasks, drawn once: the same reviews for neither, nor for training and testing."""
    if (HOME / "goods-test.jsonl").is_file():
        return
    HOME.mkdir(parents=True, exist_ok=True)
    with gzip.open(REVIEWS, "rt", encoding="utf-8") as lines:
        reviews = {row["review"]: row for row in map(json.loads, lines) if 0 < len(row["review"] or "") <= LONGEST}
    each = TRAINED + TESTED
    drawn = random.Random(1).sample(list(reviews.values()), each * len(TASKS))
    for number, task in enumerate(TASKS):
        rows = [labelled(task, row) for row in drawn[number * each : (number + 1) * each]]
        write(HOME / f"{task}-train.jsonl", rows[:TRAINED])
        write(HOME / f"{task}-test.jsonl", rows[TRAINED:])


def labelled(task: str, row: dict[str, Any]) -> dict[str, str]:
    """A review with its label for a task."""
    label = ("差评", "好评")[int(row["label"])] if task == "sentiment" else row["category"]
    return {"text": row["review"], "label": label}


def write(file: Path, rows: list[dict[str, str]]) -> None:
    """Rows as JSON lines."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def block(name: str) -> str:
    """What stands between a page's marks."""
    if name == "table":
        return "\n".join(table())
    text = (DOCS / "runs" / f"merging-{name}.yaml").read_text("utf-8")
    return f"```text\n{text.strip()}\n```"


def table() -> Iterator[str]:
    """Every model on both tasks: each measure with the interval that holds it in 95 of 100 cases."""
    found = {task: json.loads((HOME / f"on-{task}" / "results.json").read_text("utf-8")) for task in TASKS}
    heads = [f"{task}: {measure}" for task in TASKS for measure in SHOWN]
    yield "| model | " + " | ".join(heads) + " |"
    yield "| --- |" + " ---: |" * len(heads)
    for column in COLUMNS:
        cells = [cell(found[task], measure, column) for task in TASKS for measure in SHOWN]
        yield f"| {column} | " + " | ".join(cells) + " |"


def cell(results: dict[str, Any], measure: str, column: str) -> str:
    """A figure with its interval."""
    name = "model" if column == COLUMNS[0] else str(place(column))
    row = next(row for section in results["sections"] for row in section["table"] if row["name"] == measure)
    figure = row["figures"][name]
    values = [figure[key] for key in ("value", "low", "high")]
    if row["shown"] == "percent":
        return "{:.1f} % ({:.1f}–{:.1f})".format(*(100 * value for value in values))
    low, middle, high = (f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in sorted(values))
    return f"{middle} ({low}–{high})"


if __name__ == "__main__":
    main()
