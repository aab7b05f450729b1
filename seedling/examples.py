"""The example data that ships: reviews put together from lines, who the model is, better and worse answers.

    reviews.yaml     ─▶ reviews.jsonl, reviews_test.jsonl      {"text", "label"}
    identity.yaml    ─▶ identity.jsonl, identity_test.jsonl    {"messages"}
    preferences.yaml ─▶ preferences.jsonl                      {"prompt", "chosen", "rejected"}

Test reviews hold at least one line that no training row has, and no text stands on both sides. Nothing here comes
from elsewhere, and the same lines always make the same files.

    python -m seedling.examples
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from seedling import BUILTIN, ROOT
from tunesmith.core.rundir import write_atomic

FOLDER = BUILTIN / "examples"
SEED = 20
LABELS = ("positive", "negative")
REVIEWS_PER_CELL = 32
"""Training reviews of one domain, language and label; 16 such cells make 512."""
TEST_REVIEWS_PER_CELL = 8

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """What reviews of one domain, language and label are made of; each list ends with its test line."""

    items: list[str]
    openers: list[str]
    aspects: list[list[str]]
    closers: list[str]
    joint: str

    def usable(self, lines: list[str], test: bool) -> list[str]:
        return lines if test else lines[:-1]

    def reserved(self) -> set[str]:
        """The lines that no training row may have."""
        return {lines[-1] for lines in (*self.aspects, self.closers)}

    def review(self, chance: random.Random, test: bool) -> list[str]:
        """One review as its lines: an opener perhaps, one to three aspects, a verdict perhaps."""
        lines: list[str] = []
        if chance.random() < 0.5:
            opener = chance.choice(self.usable(self.openers, test))
            lines.append(_with_item(opener, chance.choice(self.items)))
        for aspect in chance.sample(self.aspects, chance.choice((1, 2, 2, 3))):
            lines.append(chance.choice(self.usable(aspect, test)))
        if len(lines) < 2 or chance.random() < 0.3:
            lines.append(chance.choice(self.usable(self.closers, test)))
        return lines


def reviews(test: bool) -> list[Row]:
    """Labelled reviews of all domains, in an order that follows from the seed."""
    count = TEST_REVIEWS_PER_CELL if test else REVIEWS_PER_CELL
    rows: list[Row] = []
    for name, label, cell in _cells():
        texts = _distinct(cell, random.Random(f"{SEED} {name} {label} {test}"), count, test)
        rows += [{"text": text, "label": label} for text in texts]
    random.Random(SEED).shuffle(rows)
    return rows


def identity(test: bool) -> list[Row]:
    """Questions about the model with their answers, as chats."""
    part = "test" if test else "ask"
    return [
        _chat(question, intent["answers"][place % len(intent["answers"])])
        for intents in _read("identity.yaml").values()
        for intent in intents
        for place, question in enumerate(intent[part])
    ]


def preferences() -> list[Row]:
    """Pairs of a better and a worse answer to the same question."""
    return [
        {
            "prompt": [_turn("user", pair["ask"])],
            "chosen": [_turn("assistant", pair["better"])],
            "rejected": [_turn("assistant", pair["worse"])],
        }
        for pairs in _read("preferences.yaml").values()
        for pair in pairs
    ]


def _cells() -> Iterator[tuple[str, str, Cell]]:
    for domain, languages in _read("reviews.yaml").items():
        for language, lines in languages.items():
            for label in LABELS:
                aspects = {name: said for name, said in lines[label].items() if name != "close"}
                joint = " " if language == "en" else ""
                cell = Cell(lines["items"], lines["openers"], list(aspects.values()), lines[label]["close"], joint)
                yield f"{domain} {language}", label, cell


def _distinct(cell: Cell, chance: random.Random, count: int, test: bool) -> list[str]:
    """Different reviews; a test review has a line that training never saw."""
    found: dict[str, None] = {}
    while len(found) < count:
        lines = cell.review(chance, test)
        if not test or cell.reserved() & set(lines):
            found[cell.joint.join(lines)] = None
    return list(found)


def _with_item(opener: str, item: str) -> str:
    article = "an" if item[0] in "aeiou" else "a"
    return opener.replace(" a {item}", f" {article} {item}").replace("{item}", item)


def _chat(question: str, answer: str) -> Row:
    return {"messages": [_turn("user", question), _turn("assistant", answer)]}


def _turn(role: str, content: str) -> Row:
    return {"role": role, "content": content}


def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def write(folder: Path, name: str, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(folder / f"{name}.jsonl", lines.encode())


def main(folder: Path = FOLDER) -> None:
    write(folder, "reviews", reviews(test=False))
    write(folder, "reviews_test", reviews(test=True))
    write(folder, "identity", identity(test=False))
    write(folder, "identity_test", identity(test=True))
    write(folder, "preferences", preferences())


if __name__ == "__main__":
    main()
