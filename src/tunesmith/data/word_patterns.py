"""Patterns by which byte-level tokenizers cut text into words, as Python's `re` writes them for ASCII text."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGITS = _GPT2.replace(r"| ?\p{N}+", r"|\p{N}").replace(r"(?!\S)", r"(?![^\s\p{N}])")
"""GPT-2's where digits are cut off first: no space is put to one, and a text ends before it."""
_QWEN = _LLAMA3.replace("{1,3}", "")
_EMBEDDED = _QWEN.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"'(?:[sdmt]|ll|ve|re)\b")
CUT = {_GPT2, _DIGITS, _LLAMA3, _QWEN, _EMBEDDED}
"""The patterns in which nothing reaches from what is no space to a space, or from a line break to a letter or digit,
and what looks around sees the same at the end of a text: `\\b` behind a letter as before a space, and `\\s+(?!\\S)` a
single line break as `\\s+` does."""
ENDS = re.compile(r"(?<=\S)(?= )|(?<=\S\n)(?=[^\W_])")
"""Where these end a word, whatever stands around."""
LINES = re.compile(r"\n(?<=\S\n)(?=[^\W_])")
"""The line breaks after which they do."""
_CLASSES = {
    r"\p{L}": "A-Za-z",
    r"\p{N}": "0-9",
    r"\p{Lu}": "A-Z",
    r"\p{Ll}": "a-z",
    r"\p{P}": "!-#%-*,-/:;?@\\[-\\]_{}",
    r"\p{S}": "$+<->^`|~",
}
"""What classes of characters hold of ASCII."""
_NONE = (r"\p{Lt}", r"\p{Lm}", r"\p{Lo}", r"\p{M}")
"""Classes that hold nothing of ASCII."""
_PIECE = re.compile(r"\\p\{\w+\}|\\.|\[\^?|\]|[^\\\[\]]", re.DOTALL)
BYTES = {byte: chr(256 + at) for at, byte in enumerate([*range(33), 127])}
"""How a byte-level vocabulary spells the characters of ASCII that cannot be seen."""


def pattern_of(plain: Mapping[str, Any]) -> re.Pattern[str] | None:
    """The pattern of a tokenizer's words in ASCII text; None where there is none, or more than a pattern."""
    model = plain["model"]
    if model.get("type") != "BPE" or model.get("dropout") or model.get("continuing_subword_prefix"):
        return None
    if model.get("end_of_word_suffix") or (plain.get("normalizer") or {"type": "NFC"})["type"] != "NFC":
        return None
    added = plain["added_tokens"]
    if any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in added):
        return None
    if len({token["normalized"] for token in added}) > 1 or any(not token["content"] for token in added):
        return None
    source = source_of(plain.get("pre_tokenizer") or {})
    written = None if source is None else _for_ascii(source)
    return None if written is None else re.compile(written, re.ASCII)


def source_of(cutter: Mapping[str, Any]) -> str | None:
    """The pattern as the tokenizer has it."""
    steps = [cutter] if cutter.get("type") != "Sequence" else cast("list[Mapping[str, Any]]", cutter["pretokenizers"])
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    own = steps[-1].get("use_regex", True)
    if len(steps) == 1 and own:
        return _GPT2
    if len(steps) == 2 and own and steps[0] == {"type": "Digits", "individual_digits": True}:
        return _DIGITS
    if len(steps) == 2 and not own and steps[0].get("type") == "Split":
        split = steps[0]
        if split.get("behavior") == "Isolated" and not split.get("invert"):
            return split.get("pattern", {}).get("Regex")
    return None


def _for_ascii(source: str) -> str | None:
    """A pattern with classes of Unicode as the characters that they hold of ASCII; None where one is not known."""
    out: list[str] = []
    inside = False
    for piece in _PIECE.findall(source):
        if piece in _CLASSES:
            piece = _CLASSES[piece] if inside else f"[{_CLASSES[piece]}]"
        elif piece in _NONE:
            piece = "" if inside else "(?!)"
        elif piece.startswith((r"\p", r"\P")):
            return None
        elif piece.startswith("[") and not inside:
            inside = True
        elif piece.startswith("["):
            return None
        elif piece == "]":
            inside = False
        out.append(piece)
    return "".join(out)
