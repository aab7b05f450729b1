"""Words that were met before: their ids without running the tokenizer again.

    text ─▶ special tokens apart ─▶ words (the tokenizer's own pattern) ─▶ ids of each, remembered

A byte-level tokenizer cuts text into words by a pattern and gives each word its ids by itself, so the ids of a text are
those of its words, one after the other, and a text is mostly words that stood in texts before. This holds for the
tokenizers of GPT-2, Llama 3, Qwen and their kin. It is done for ASCII text, for which the pattern can be written
without tables of letters; every other tokenizer is left to itself, and the tokenizer says what a word becomes.

    It costs 5 €, says Zoë: a bargain.  ─▶  It| costs| 5| €,| says| Zoë:| a| bargain|.
                                                        ───       ─────

In other text what is not ASCII is cut out where the pattern, if it is one of those that are known, ends a word whatever
stands around: before a space behind something that is none, and between a single line break and a letter or digit. Such
a piece may be several words; the tokenizer says what it becomes, and it is remembered as a whole.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

import re
import unicodedata
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
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGITS = _GPT2.replace(r"| ?\p{N}+", r"|\p{N}").replace(r"(?!\S)", r"(?![^\s\p{N}])")
"""GPT-2's where digits are cut off first: no space is put to one, and a text ends before it."""
_QWEN = _LLAMA3.replace("{1,3}", "")
_EMBEDDED = _QWEN.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"'(?:[sdmt]|ll|ve|re)\b")
_CUT = {_GPT2, _DIGITS, _LLAMA3, _QWEN, _EMBEDDED}
"""The patterns in which nothing reaches from what is no space to a space, or from a line break to a letter or digit,
and what looks around sees the same at the end of a text: `\\b` behind a letter as before a space, and `\\s+(?!\\S)` a
single line break as `\\s+` does."""
_ENDS = re.compile(r"(?<=\S)(?= )|(?<=\S\n)(?=[^\W_])")
"""Where these end a word, whatever stands around."""
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

    def __init__(
        self, tokenizer: Tokenizer, pattern: re.Pattern[str], added: Mapping[str, int], cuts: bool = False
    ) -> None:
        """pattern: of its words; added: the tokens that it looks for before that, with their ids; cuts: whether it is
        known where words end in text that is not ASCII.
        """
        self._tokenizer = tokenizer
        self._cuts = cuts
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
        cuts = _source(plain["pre_tokenizer"]) in _CUT and all(text.isascii() for text in added)
        found = cls(tokenizer, pattern, added, cuts)
        sample = _SAMPLE + "".join(f"a{text} {text}{text}b" for text in list(added)[:8] if text.isascii())
        right = tokenizer.encode(sample, add_special_tokens=False).ids
        told = found.locate(sample, ())
        return found if told is not None and told[0] == right else None

    def locate(self, text: str, cuts: Sequence[int]) -> tuple[list[int], list[int]] | None:
        """The ids of a text, and for each cut between characters the first token that reaches past it.

        None: it is not known where words end, or a cut stands within one; the tokenizer must be asked.
        """
        if not (text.isascii() or (self._cuts and unicodedata.is_normalized("NFC", text))):
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
        find = self._find if text.isascii() else self._with_pieces
        if self._apart is None:
            return find(text)
        parts = self._apart.split(text)
        if len(parts) == 1:
            return find(text)
        words: list[str] = []
        for at, part in enumerate(parts):
            if at % 2:
                words.append(part)
            elif part:
                words += find(part)
        return words

    def _with_pieces(self, text: str) -> list[str]:
        """The words of what is ASCII in a text, and the pieces with what is not, in order."""
        words: list[str] = []
        done = at = 0
        for piece in _ENDS.split(text):
            if not piece.isascii():
                words += self._find(text[done:at])
                words.append(piece)
                done = at + len(piece)
            at += len(piece)
        return words + self._find(text[done:])

    def _ids(self, words: Sequence[str]) -> list[tuple[int, ...]]:
        known = self._known
        try:
            return [known[word] for word in words]
        except KeyError:
            return [known[word] if word in known else self._learn(word) for word in words]

    def _learn(self, word: str) -> tuple[int, ...]:
        if word.isascii():
            ids = tuple(token.id for token in self._model.tokenize(word.translate(_BYTES)))
        else:
            ids = tuple(self._tokenizer.encode(word, add_special_tokens=False).ids)
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
