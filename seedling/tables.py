"""The rows that askings and answers are filled from: those written down, and those that are counted or put together.

    chats/tables.yaml ─┬─▶ rows(name, language)   [{"country": "France", "city": "Paris"}, …]
    numbers, stories  ─┘

A row that is held out is so wherever it is used: a name, a sum or a city that no training chat fills in.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import yaml

from seedling import ROOT, one_in

SEED = 22
HELD_OUT_ONE_IN = 8
STORIES = 800
"""So many of the possible stories are told."""
LARGEST = 20
"""Of a sum."""

Row = dict[str, str]


def rows(name: str, language: str) -> list[Row]:
    """The rows of a table in a language; always the same, in the same order."""
    made = MADE.get(name)
    return made(language) if made else written(name, language)


def held_out(row: Row) -> bool:
    """Whether a row is kept from training where an intent holds rows out: by its name, or its values in any order."""
    content = row.get("name") or "|".join(sorted(row.values()))
    return one_in(HELD_OUT_ONE_IN, content)


def written(name: str, language: str) -> list[Row]:
    """The rows of a table in `tables.yaml`."""
    table = _tables()[name]
    columns = [column.strip() for column in table["columns"].split(",")]
    lines = table.get("both", table.get(language, "")).splitlines()
    return [dict(zip(columns, line.split(" | "), strict=True)) for line in lines]


@cache
def _tables() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "chats" / "tables.yaml").read_text(encoding="utf-8"))


def _numbers(**numbers: int) -> Row:
    return {name: str(number) for name, number in numbers.items()}


def _plus(_: str) -> list[Row]:
    return [_numbers(a=a, b=b, c=a + b) for a in range(LARGEST + 1) for b in range(LARGEST + 1 - a)]


def _story_plus(language: str) -> list[Row]:
    return [row for row in _plus(language) if int(row["a"]) > 1 and int(row["b"]) > 1]


def _minus(_: str) -> list[Row]:
    return [_numbers(a=a, b=b, c=a - b) for a in range(LARGEST + 1) for b in range(a + 1)]


def _large_sums(_: str) -> list[Row]:
    chance = random.Random(SEED)
    return [_numbers(a=chance.randint(21, 999), b=chance.randint(21, 99)) for _ in range(300)]


def _following(_: str) -> list[Row]:
    return [_numbers(a=a, b=a + 1) for a in range(1, 60)]


def _pairs(_: str) -> list[Row]:
    chance = random.Random(SEED)
    drawn = [chance.sample(range(1, top), 2) for top in (10, 20, 100) for _ in range(120)]
    return [_numbers(a=a, b=b, more=max(a, b), less=min(a, b)) for a, b in drawn]


def _counting(language: str) -> list[Row]:
    joint = ", " if language == "en" else "，"
    numbers = [[str(number) for number in range(1, top + 1)] for top in range(2, LARGEST + 1)]
    return [{"n": up[-1], "counted": joint.join(up), "down": joint.join(reversed(up))} for up in numbers]


def _spelled(language: str) -> list[Row]:
    return [row | {"letters": "-".join(row["word"].upper())} for row in written("spelled", language)]


def _sayings(language: str) -> list[Row]:
    """Sentences, things of some kind, numbers and names to say after."""
    chance = random.Random(SEED)
    joint = " " if language == "en" else ""
    kinds, things = ([row["word"] for row in written(name, language)] for name in ("said_of", "said_things"))
    texts = [row["text"] for row in written("said_sentences", language)]
    texts += [f"{kind}{joint}{thing}" for kind in kinds for thing in chance.sample(things, 6)]
    texts += [" ".join(chance.choices("0123456789", k=length)) for length in (2, 3, 3, 4, 4, 5) * 3]
    texts += [row["name"] for row in written("people", language)[::3]]
    return [{"text": text} for text in dict.fromkeys(texts)]


def _heroes(language: str) -> list[Row]:
    """Animals with a name, and what befell them."""
    chance = random.Random(SEED)
    parts = [written(name, language) for name in ("story_heroes", "story_names", "story_events")]
    return [chance.choice(parts[0]) | chance.choice(parts[1]) | chance.choice(parts[2]) for _ in range(STORIES)]


def _children(language: str) -> list[Row]:
    chance = random.Random(SEED)
    return [name | event for event in written("child_events", language) for name in _drawn(chance, language, 40)]


def _drawn(chance: random.Random, language: str, count: int) -> list[Row]:
    return chance.sample(written("people", language), count)


MADE: dict[str, Callable[[str], list[Row]]] = {
    "plus": _plus,
    "minus": _minus,
    "story_plus": _story_plus,
    "large_sums": _large_sums,
    "following": _following,
    "pairs": _pairs,
    "counting": _counting,
    "spelled": _spelled,
    "sayings": _sayings,
    "heroes": _heroes,
    "children": _children,
}
"""Tables that are not written down, by name."""
