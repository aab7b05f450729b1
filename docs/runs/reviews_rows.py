"""The product reviews in two files, one in ten held out by a hash of its text, so that every run has the same split.

    python docs/runs/reviews_rows.py        makes runs/reviews-rows/train.jsonl and runs/reviews-rows/held_out.jsonl

A text that occurs twice is kept once; where its labels differ it is left out.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
REVIEWS = ROOT.parent / "shared" / "data" / "benchmarks" / "zh_product_reviews.jsonl.gz"
OUTPUT = ROOT / "runs" / "reviews-rows"
SHARE = 10
"""One row of so many is held out."""


def held_out(text: str) -> bool:
    """Whether a review is kept for measuring; follows from its text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % SHARE == 0


def main() -> None:
    """Write both files and print their sizes."""
    labels: dict[str, set[int]] = {}
    with gzip.open(REVIEWS, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            labels.setdefault(row["review"].strip(), set()).add(int(row["label"]))
    sure = {text: found.pop() for text, found in labels.items() if text and len(found) == 1}
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for name, aside in (("train", False), ("held_out", True)):
        rows = [{"text": text, "label": label} for text, label in sure.items() if held_out(text) == aside]
        (OUTPUT / f"{name}.jsonl").write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
        print(f"{OUTPUT.name}/{name}.jsonl: {len(rows):,} rows, {sum(row['label'] for row in rows):,} of label 1")
    print(f"{len(labels):,} texts, {len(labels) - len(sure)} of them empty or with both labels")


if __name__ == "__main__":
    main()
