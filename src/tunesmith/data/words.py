"""Words that were met before: their ids without running the tokenizer again.

    text ─▶ special tokens apart ─▶ words (the tokenizer's own pattern) ─▶ ids of each, remembered

A byte-level tokenizer cuts text into words by a pattern and gives each word its ids by itself, so the ids of a text are
those of its words, one after the other, and a text is mostly words that stood in texts before. This holds for the
tokenizers of GPT-2, Llama 3, Qwen and their kin. It is done for ASCII text alone, for which the pattern can be written
without tables of letters; every other text and tokenizer is left to the tokenizer, which also says what a word becomes.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate, chain
from typing import Any, cast

from tokenizers import Tokenizer

MOST_WORDS = 1 << 17
"""How many words are remembered."""
LONGEST = 64
"""Longer words are not remembered."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
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
_BYTES = {byte: chr(256 + at) for at, byte in enumerate([*range(33), 127])}
"""How a byte-level vocabulary spells the characters of ASCII that cannot be seen."""
_SAMPLE = (
    "It's they'LL we've I'M don't 'tis x's\n\nA1b22 333 4444 55555  two   three \t tab\r\n \n  end. (paren) [x]{y} "
    "<b>&amp;</b> http://a.b/c?d=e&f=1 a_b a-b ---- *** $3.50 50% #tag @me `code`  \n\n\n\tdef f(x): return x ** 2;\x0b"
    "\x1c!\x7f camelCase HTMLParser iPhone ABCdef 'a' \"q\" ...?! \\n |x| ~y~ 3rd 1st\r\r\n   "
)
"""Text on which the pattern must give what the tokenizer gives, before it is relied on."""


class Words:
    """Ids by word, for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, pattern: re.Pattern[str], added: Mapping[str, int]) -> None:
        """pattern: of its words; added: the tokens that it looks for before that, with their ids."""
        self._model: Any = tokenizer.model
        self._find = pattern.findall
        self._known: dict[str, tuple[int, ...]] = {text: (number,) for text, number in added.items()}
        named = "|".join(map(re.escape, sorted(added, key=len, reverse=True)))
        self._apart = re.compile(f"({named})") if added else None

    @classmethod
    def of(cls, plain: Mapping[str, Any], tokenizer: Tokenizer) -> Words | None:
        """The words of a tokenizer; None where it does not cut text into words, or not by a pattern that is known.

        plain: the tokenizer's JSON.
        """
        pattern = _pattern(plain)
        if pattern is None:
            return None
        added = {token["content"]: int(token["id"]) for token in plain["added_tokens"]}
        found = cls(tokenizer, pattern, added)
        sample = _SAMPLE + "".join(f"a{text} {text}{text}b" for text in list(added)[:8] if text.isascii())
        right = tokenizer.encode(sample, add_special_tokens=False).ids
        told = found.locate(sample, ())
        return found if told is not None and told[0] == right else None

    def locate(self, text: str, cuts: Sequence[int]) -> tuple[list[int], list[int]] | None:
        """The ids of a text, and for each cut between characters the first token that reaches past it.

        None: the text is not ASCII, or a cut stands within a word; the tokenizer must be asked.
        """
        if not text.isascii():
            return None
        words = self._words(text)
        ids = self._ids(words)
        ends = list(accumulate(map(len, words)))
        if ends[-1:] != [len(text)] and text:
            return None
        places: list[int] = []
        for cut in cuts:
            before = bisect_right(ends, cut)
            if cut != (ends[before - 1] if before else 0):
                return None
            places.append(sum(map(len, ids[:before])))
        return list(chain.from_iterable(ids)), places

    def _words(self, text: str) -> list[str]:
        """The words of a text in order, added tokens among them."""
        if self._apart is None:
            return self._find(text)
        parts = self._apart.split(text)
        if len(parts) == 1:
            return self._find(text)
        words: list[str] = []
        for at, part in enumerate(parts):
            if at % 2:
                words.append(part)
            elif part:
                words += self._find(part)
        return words

    def _ids(self, words: Sequence[str]) -> list[tuple[int, ...]]:
        known = self._known
        try:
            return [known[word] for word in words]
        except KeyError:
            return [known[word] if word in known else self._learn(word) for word in words]

    def _learn(self, word: str) -> tuple[int, ...]:
        ids = tuple(token.id for token in self._model.tokenize(word.translate(_BYTES)))
        if len(self._known) < MOST_WORDS and len(word) <= LONGEST:
            self._known[word] = ids
        return ids


def _pattern(plain: Mapping[str, Any]) -> re.Pattern[str] | None:
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
    source = _source(plain.get("pre_tokenizer") or {})
    written = None if source is None else _for_ascii(source)
    return None if written is None else re.compile(written, re.ASCII)


def _source(cutter: Mapping[str, Any]) -> str | None:
    """The pattern as the tokenizer has it."""
    steps = [cutter] if cutter.get("type") != "Sequence" else cast("list[Mapping[str, Any]]", cutter["pretokenizers"])
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    own = steps[-1].get("use_regex", True)
    if len(steps) == 1 and own:
        return _GPT2
    if len(steps) == 2 and own and steps[0] == {"type": "Digits", "individual_digits": True}:
        # Digits are cut off first: no space is put to one, and a text ends before it.
        return _GPT2.replace(r"| ?\p{N}+", r"|\p{N}").replace(r"(?!\S)", r"(?![^\s\p{N}])")
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
