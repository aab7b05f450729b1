"""Cleaning of text: undoing the spacing of tokenised corpora, broken quotes, and the size of documents."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_SPACED = (
    (re.compile(r" @([-,.])@ "), r"\1"),
    (re.compile(r"''"), '"'),
    (re.compile(r'"\s*([^"]*?)\s*"'), r'"\1"'),
    (re.compile(r"\([\s,;]*\)"), ""),
    (re.compile(r"\s+([,.;:!?%)\]])"), r"\1"),
    (re.compile(r"([(\[$£]) +"), r"\1"),
    (re.compile(r" (n't|'(?:s|re|ve|ll|d|m))\b"), r"\1"),
    (re.compile(r"s ' "), "s' "),
    (re.compile(r" {2,}"), " "),
)
_HYPHENS = re.compile(r"(?<=\w) ([-/]) (?=\w)")
_GAP = re.compile(r"[,;] ?[,;.]|\b(?:a|an|as|or|and|the|of|in)[,.](?:\s|$)")
_SENTENCE_END = re.compile(r"(?<=[.!?]) (?=[\"A-Z])")
_BROKEN_QUOTES = (("â€œ", '"'), ("â€™", "'"), ("â€“", " - "), ("â€”", " - "), ("â€", '"'))
_INVISIBLE = re.compile("[\u200b\u200c\u200d\ufeff\u00ad]")


def unspaced(text: str, hyphens: bool = False) -> str:
    """A sentence of a tokenised corpus as people write it; `hyphens` also closes `well - known`."""
    for pattern, replacement in _SPACED:
        text = pattern.sub(replacement, text)
    return (_HYPHENS.sub(r"\1", text) if hyphens else text).strip()


def whole(sentence: str) -> bool:
    """Whether nothing seems to have been cut out of a sentence: no `was a , or .`, no `<unk>`."""
    return "<unk>" not in sentence and _GAP.search(sentence) is None


def sentences(paragraph: str) -> list[str]:
    """The sentences of an English paragraph."""
    return _SENTENCE_END.split(paragraph)


def mended(text: str) -> str:
    """A text whose typographic quotes were read in a wrong encoding, with plain quotes in their place."""
    for broken, plain in _BROKEN_QUOTES:
        text = text.replace(broken, plain)
    return text


def visible(text: str) -> str:
    """A text without zero-width characters and without spaces at line ends."""
    return re.sub(r"[ \t\u3000]+\n", "\n", _INVISIBLE.sub("", text)).strip()


def grouped(parts: Iterable[str], size: int, joint: str) -> Iterator[str]:
    """Documents of about `size` characters: whole parts, joined in order; a longer part stands alone."""
    held: list[str] = []
    for part in parts:
        if held and sum(map(len, held)) + len(part) > size:
            yield joint.join(held)
            held = []
        held.append(part)
    if held:
        yield joint.join(held)


def strided(parts: list[str], step: int) -> list[str]:
    """The same parts with `step` others between neighbours, so that a sorted list is mixed without chance."""
    return [part for start in range(step) for part in parts[start::step]]
