"""Chats out of the corpus, which teach the base model where a turn begins and ends, and nothing that it has not read.

    build/parts/* ─▶ documents of questions and answers ─▶ pairs ─▶ build/turns.jsonl   {"messages": …}

Only documents that were trained on are taken, so nothing that is held out is seen.

    python -m seedling.turns
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice

from seedling import TURNS
from seedling.examples import write
from seedling.tokenizer import corpus_by_source

Pair = tuple[str, str]

_ENGLISH = re.compile(r"(?:^|\n\n)Question: (.+?)\nAnswer: (.+?)(?=\n\nQuestion: |\Z)", re.DOTALL)
_CHINESE = re.compile(r"(?:^|\n)问：(.+?)\n答：(.+?)(?=\n问：|\Z)", re.DOTALL)


def _asked(text: str) -> Iterator[list[Pair]]:
    """Pairs that do not hang together, each a chat of its own."""
    return ([(ask, reply)] for ask, reply in _ENGLISH.findall(text))


def _talked(text: str) -> Iterator[list[Pair]]:
    """A conversation in either language."""
    yield _ENGLISH.findall(text) or _CHINESE.findall(text)


def _riddled(text: str) -> Iterator[list[Pair]]:
    """Two-part sayings: the first half asks, the second answers."""
    for line in text.split("\n"):
        riddle, _, answer = line.removesuffix("。").partition("——")
        yield [(riddle, answer)]


READ: dict[str, tuple[Callable[[str], Iterator[list[Pair]]], int]] = {
    "instructions": (_asked, 1100),
    "gsm8k": (_asked, 500),
    "glaive_en": (_talked, 200),
    "dialogues": (_talked, 600),
    "glaive_zh": (_talked, 200),
    "xiehouyu": (_riddled, 2000),
}
"""How the documents of a source become chats, and how many of these are taken."""


def chats() -> Iterator[list[Pair]]:
    """The chats of all sources, in the order of the corpus."""
    for fact, documents in corpus_by_source():
        if fact["name"] in READ:
            read, most = READ[fact["name"]]
            yield from islice((pairs for text in documents for pairs in read(text) if pairs), most)


def row(pairs: list[Pair]) -> dict[str, list[dict[str, str]]]:
    """A chat as a row of messages."""
    messages = [
        {"role": role, "content": text.strip()}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return {"messages": messages}


def main() -> None:
    rows = [row(pairs) for pairs in chats()]
    write(TURNS.parent, TURNS.stem, rows)
    print(f"{TURNS.name}: {len(rows):,} chats")


if __name__ == "__main__":
    main()
