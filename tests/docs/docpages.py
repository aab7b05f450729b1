"""The pages of the docs as tests read them, and the script that fills them."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAIRS = {
    "README.md": "README.zh.md",
    "docs/design.md": "docs/design.zh.md",
    "docs/results.md": "docs/results.zh.md",
    "docs/methods.md": "docs/methods.zh.md",
    "docs/merging.md": "docs/merging.zh.md",
    "docs/benchmarks.md": "docs/benchmarks.zh.md",
}
"""Pages that stand side by side; those under docs/en have their twin under docs/zh."""


def script() -> ModuleType:
    """docs/refresh.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_refresh", REPOSITORY / "docs" / "refresh.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


refresh = script()


def pages() -> list[Path]:
    return [*refresh.pages(), REPOSITORY / "CONTRIBUTING.md"]


def name(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def twins() -> dict[str, str]:
    """The English pages with the Chinese ones beside them, both by name."""
    inner = [name(page) for page in (REPOSITORY / "docs" / "en").rglob("*.md")]
    return PAIRS | {page: page.replace("docs/en/", "docs/zh/") for page in inner}


@dataclass(frozen=True)
class Block:
    """A code block: its language, its text and where it stands."""

    language: str
    text: str
    place: str


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for found in FENCE.finditer(text):
        yield Block(found[1], found[2], f"{name(page)}:{text[: found.start()].count(chr(10)) + 1}")


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Every `tunesmith …` of a page's shell blocks, with its place; pipes and lists are taken apart."""
    for block in blocks(page):
        for line in _lines(block):
            yield from ((block.place, words) for words in _split(line) if words and words[0] == "tunesmith")


def _lines(block: Block) -> list[str]:
    lines = block.text.splitlines()
    if block.language == "console":
        return [line[2:] for line in lines if line.startswith("$ ")]
    return lines if block.language == "bash" else []


def _split(line: str) -> Iterator[list[str]]:
    reader = shlex.shlex(line, posix=True, punctuation_chars=True)
    reader.whitespace_split = True
    words: list[str] = []
    for word in reader:
        if set(word) <= set(";|&<>()"):
            yield words
            words = []
        else:
            words.append(word)
    yield words
