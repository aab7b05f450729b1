"""The rows that are learned: lengths as real instruction rows have them, tokens drawn at random.

Lengths are what the time follows from; with random weights it does not matter which tokens stand there. Every token is
a word of its own in a tokenizer made for this, so that programs that read text and programs that read tokens learn the
very same rows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LENGTHS = (
    (48, 402), (31, 103), (32, 13), (29, 386), (51, 10), (39, 28), (24, 254), (31, 17), (40, 16), (29, 247), (46, 87),
    (26, 30), (28, 348), (37, 28), (31, 7), (27, 397), (56, 35), (66, 19), (62, 49), (34, 139), (44, 81), (32, 383),
    (30, 37), (35, 225), (71, 107), (45, 80), (26, 417), (26, 400), (36, 13), (46, 17), (28, 14), (63, 255), (27, 109),
    (46, 150), (28, 401), (45, 11), (31, 315), (28, 84), (23, 23), (58, 4), (49, 58), (51, 401), (28, 104), (57, 132),
    (26, 11), (22, 193), (45, 22), (44, 343),
)  # fmt: skip
"""(prompt, answer) of 48 rows drawn from a well-known set of instructions, with sums close to its means."""
TEXTS = (512, 203, 871, 340, 96, 655, 1024, 150, 428, 77, 590, 261, 733, 118, 904, 388)
"""Lengths of documents, short and long as web text has them."""
FOLDERS = ("warm", "rows")
"""Where the same rows lie twice: for the step that warms a process up, with its memory, and for the timed one."""
END, FIRST = 1, 3
"""The token that ends an answer or a text, and the first of those that are words."""


@dataclass(frozen=True)
class Example:
    """A row: tokens of its prompt (none for plain text) and of what is learned, which ends with END."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def tokens(self) -> list[int]:
        return [*self.prompt, *self.answer]

    @property
    def labels(self) -> list[int]:
        """What is learned; -100 for what is not."""
        return [*[-100] * len(self.prompt), *self.answer]


def instructions(count: int, vocab: int, seed: int = 7, system: int = 0) -> list[Example]:
    """Rows with a prompt, before which the same `system` tokens stand; beyond 48 the lengths come again."""
    draw = random.Random(seed)
    lengths = [LENGTHS[number % len(LENGTHS)] for number in range(count)]
    common = _words(random.Random(seed + 1), system, vocab)
    return [
        Example((*common, *_words(draw, prompt, vocab)), (*_words(draw, answer - 1, vocab), END))
        for prompt, answer in lengths
    ]


def texts(count: int, vocab: int, seed: int = 7) -> list[Example]:
    """Documents; beyond 16 the lengths come again."""
    draw = random.Random(seed)
    return [Example((), (*_words(draw, TEXTS[number % len(TEXTS)] - 1, vocab), END)) for number in range(count)]


def _words(draw: random.Random, count: int, vocab: int) -> tuple[int, ...]:
    return tuple(draw.randrange(FIRST, vocab) for _ in range(count))


def text(tokens: Sequence[int]) -> str:
    """Tokens as the text that the tokenizer reads them from."""
    return " ".join("</s>" if token == END else f"t{token}" for token in tokens)


def _asked(row: Example, answer: Sequence[int]) -> dict[str, str]:
    return {"instruction": text(row.prompt), "input": "", "output": text(answer)}


def write(rows: Sequence[Example], folder: Path) -> None:
    """Rows as each program reads them.

    rows.json    tokens and labels                  asked.json   text; the chat template ends the answers
    texts.jsonl  documents as text                  ended.json   text with its end, and LLaMA-Factory's register
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = [{"input_ids": row.tokens, "labels": row.labels} for row in rows]
    (folder / "rows.json").write_text(json.dumps(plain))
    (folder / "asked.json").write_text(json.dumps([_asked(row, row.answer[:-1]) for row in rows]))
    (folder / "ended.json").write_text(json.dumps([_asked(row, row.answer) for row in rows]))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text(row.answer[:-1])}) + "\n" for row in rows))
    about = {"ended": {"file_name": "ended.json"}, "texts": {"file_name": "texts.jsonl", "columns": {"prompt": "text"}}}
    (folder / "dataset_info.json").write_text(json.dumps(about))
