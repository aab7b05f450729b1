"""Rows of a task with an answer that can be checked: the largest of three digits, asked in both languages.

    python docs/runs/largest.py      makes runs/largest-sft.jsonl, runs/largest-prompts.jsonl, runs/largest-held.jsonl

All prompts are different ones: 300 with answers to learn the form from, 400 to learn by reward, 200 held out.
"""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path

RUNS = Path(__file__).resolve().parent.parent.parent / "runs"
SIZES = {"sft": 300, "prompts": 400, "held": 200}


def main() -> None:
    """Write the three files."""
    digits = list(product(range(10), repeat=3))
    random.Random(0).shuffle(digits)
    RUNS.mkdir(exist_ok=True)
    start = 0
    for name, size in SIZES.items():
        question, answer = ("instruction", "output") if name == "sft" else ("prompt", "answer")
        rows = [
            {question: f"最大 largest: {' '.join(map(str, three))}", answer: str(max(three))}
            for three in digits[start : start + size]
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (RUNS / f"largest-{name}.jsonl").write_text(lines, "utf-8")
        start += size


if __name__ == "__main__":
    main()
