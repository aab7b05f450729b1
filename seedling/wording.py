"""How the same thing is written in other ways: brackets, slots, small letters, a greeting first, other script.

"What colo[u|]r is {thing}?" ─▶ expanded ─▶ varied ─▶ filled ─▶ "hi! what color is grass"
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import yaml

from seedling import ROOT
from seedling.tables import Row

PLAIN = 0.5
"""Share of askings that stand as they were written."""
_BRACKET = re.compile(r"\[([^\[\]]*)\]")
_ARTICLE = re.compile(r"\b([Aa]) (?=\{(\w+)\})")
_SLOT = re.compile(r"\{(\w+)\}")
_ENDS = ".!?。！？"
_GREETED = ("hi", "hello", "hey", "good ", "excuse", "sorry", "你好", "您好", "请", "嗨", "早上", "晚上", "对不起")


def lines(block: str | None) -> list[str]:
    """The lines of a block, each as many times as its brackets have choices."""
    return list(dict.fromkeys(text for line in (block or "").splitlines() for text in expanded(line)))


def expanded(line: str) -> Iterator[str]:
    """[a|b] is either, innermost first."""
    found = _BRACKET.search(line)
    if found is None:
        yield line
        return
    for choice in found[1].split("|"):
        yield from expanded(line[: found.start()] + choice + line[found.end() :])


def filled(template: str, row: Row) -> str:
    """A template with its slots filled: {Thing} begins with a capital, and "a" becomes "an" where it must."""
    template = _ARTICLE.sub(lambda found: _article(found[1], row[found[2].lower()]), template)
    return _SLOT.sub(lambda found: _cased(found[1], row[found[1].lower()]), template)


def varied(text: str, language: str, chance: random.Random, bare: bool) -> str:
    """The text as it stands, or as people also type it."""
    drawn = chance.random()
    if drawn < PLAIN:
        return text
    if drawn < PLAIN + 0.25 or bare:
        return _typed(text, language, chance)
    ways = manners()[language]
    if drawn < PLAIN + 0.42 and not text.lower().startswith(_GREETED):
        asked = text[-1] in "?？"
        before = chance.choice(ways["before"] + (ways["before_question"] * 2 if asked else []))
        return before + (" " if language == "en" else "") + text
    if text[-1] in _ENDS:
        return text + (" " if language == "en" else "") + chance.choice(ways["after"])
    return text


def _typed(text: str, language: str, chance: random.Random) -> str:
    """Without its last mark, in small letters, or with the marks of the other keyboard."""
    if language == "zh" and chance.random() < 0.3:
        return text.replace("？", "?").replace("，", ",").replace("！", "!")
    cut = text.rstrip(_ENDS).rstrip() or text
    return cut.lower() if language == "en" and chance.random() < 0.7 else cut


@cache
def manners() -> dict[str, dict[str, list[str]]]:
    """What may stand before and after an asking, and system turns that fit every answer; by language."""
    ways = _read("ways.yaml")
    return {language: {name: lines(block) for name, block in parts.items()} for language, parts in ways.items()}


def traditional(text: str) -> str:
    """Simplified Chinese in traditional characters; words in which a character depends on its sense come first."""
    forms = _scripts()
    return re.sub("|".join(map(re.escape, forms)), lambda found: forms[found[0]], text)


@cache
def _scripts() -> dict[str, str]:
    scripts = _read("traditional.yaml")
    return scripts["words"] | dict(scripts["characters"].split())


def normal(text: str) -> str:
    """What is left of a text when case, marks and spaces do not count; signs between numbers do."""
    signed = re.sub(r"(?<=\d)( ?)-", " minus ", text.casefold().replace("+", " plus "))
    return " ".join(re.sub(r"[\W_]+", " ", signed).split())


def _article(article: str, word: str) -> str:
    return f"{article}n " if word[0].lower() in "aeiou" else f"{article} "


def _cased(slot: str, value: str) -> str:
    return value[0].upper() + value[1:] if slot[0].isupper() else value


def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "chats" / name).read_text(encoding="utf-8"))
