"""Words that were met before: their ids without running the tokenizer again.

    text ─▶ special tokens apart ─▶ pieces ─▶ words (the tokenizer's own pattern) ─▶ ids of each, remembered

A byte-level tokenizer cuts text into words by a pattern and gives each word its ids by itself, so the ids of a text are
those of its words, one after the other, and a text is mostly words that stood in texts before. This holds for the
tokenizers of GPT-2, Llama 3, Qwen and their kin; every other tokenizer is left to itself, and the tokenizer says what a
word becomes. For ASCII text the pattern can be written without tables of letters (`word_patterns.py`).

    It costs 5 €, says Zoë: a bargain.  ─▶  It| costs| 5| €,| says| Zoë:| a| bargain.

Before that a text is cut into pieces where the pattern, if it is one of those that are known, ends a word whatever
stands around: before a space behind something that is none, and between a single line break and a letter or digit.
That is a split at spaces, much cheaper than the pattern, and pieces too are remembered. A piece that is not ASCII may
be several words; the tokenizer says what it becomes.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tunesmith.data.word_patterns import BYTES, CUT, ENDS, LINES, pattern_of, source_of

MOST_WORDS = 1 << 17
"""How many words are remembered, and how many pieces."""
LONGEST = 64
"""Longer ones are not remembered."""

_SAMPLE = (
    "It's they'LL we've I'M don't 'tis x's\n\nA1b22 333 4444 55555  two   three \t tab\r\n \n  end. (paren) [x]{y} "
    "<b>&amp;</b> http://a.b/c?d=e&f=1 a_b a-b ---- *** $3.50 50% #tag @me `code`  \n\n\n\tdef f(x): return x ** 2;\x0b"
    "\x1c!\x7f camelCase HTMLParser iPhone ABCdef 'a' \"q\" ...?! \\n |x| ~y~ 3rd 1st\r\r\n   "
)
"""Text on which the pattern must give what the tokenizer gives, before it is relied on."""
_ID = np.dtype(np.int32)

Ids = NDArray[np.int32]


class Words:
    """Ids by word, for one tokenizer."""

    def __init__(
        self, tokenizer: Tokenizer, pattern: re.Pattern[str], added: Mapping[str, int], cuts: bool = False
    ) -> None:
        """pattern: of its words; added: the tokens that it looks for before that, with their ids; cuts: whether it is
        known where words end in any text, so that there are pieces.
        """
        self._tokenizer = tokenizer
        self._cuts = cuts
        self._model: Any = tokenizer.model
        self._find = pattern.findall
        self._added = {text: _raw([number]) for text, number in added.items()}
        named = "|".join(map(re.escape, sorted(added, key=len, reverse=True)))
        self._apart = re.compile(f"({named})") if added else None
        self._words = _Remembered(self._of_word)
        self._pieces = _Remembered(self._of_piece)
        self._spaced = _Remembered(self._after_space)

    @classmethod
    def of(cls, plain: Mapping[str, Any], tokenizer: Tokenizer) -> Words | None:
        """The words of a tokenizer; None where it does not cut text into words, or not by a pattern that is known.

        plain: the tokenizer's JSON.
        """
        pattern = pattern_of(plain)
        if pattern is None:
            return None
        added = {token["content"]: int(token["id"]) for token in plain["added_tokens"]}
        cuts = source_of(plain["pre_tokenizer"]) in CUT and all(text.isascii() for text in added)
        sample = _SAMPLE + "".join(f"a{text} {text}{text}b" for text in list(added)[:8] if text.isascii())
        right = tokenizer.encode(sample, add_special_tokens=False).ids
        for known in {False, cuts}:
            told = cls(tokenizer, pattern, added, known).locate(sample, ())
            if told is None or told[0].tolist() != right:
                return None
        return cls(tokenizer, pattern, added, cuts)

    def locate(self, text: str, cuts: Sequence[int]) -> tuple[Ids, list[int]] | None:
        """The ids of a text, and for each cut between characters the first token that reaches past it.

        None: it is not known where words end, or a cut stands within one; the tokenizer must be asked.
        """
        if not (text.isascii() or (self._cuts and unicodedata.is_normalized("NFC", text))):
            return None
        sections = [text] if self._apart is None else self._apart.split(text)
        places: dict[int, int] = {}
        parts: list[bytes] = []
        at = size = 0
        try:
            for length, raw in self._encoded(sections, sorted({*cuts, len(text)})):
                places[at] = size // _ID.itemsize
                at += length
                size += len(raw)
                parts.append(raw)
        except _NotWords:
            return None
        places[at] = size // _ID.itemsize
        return np.frombuffer(b"".join(parts), _ID).copy(), [places[cut] for cut in cuts]

    def _encoded(self, sections: Sequence[str], cuts: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """Parts of a text in order, each with its length and ids; every cut is the start of one, or the end.

        sections: the text, every other one an added token; cuts: sorted, the end of the text among them.
        """
        at = done = 0
        for number, section in enumerate(sections):
            stop = at + len(section)
            while cuts[done] <= at < stop:
                done += 1
            if number % 2:
                if cuts[done] < stop:
                    raise _NotWords
                yield len(section), self._added[section]
            elif section and self._cuts and cuts[done] >= stop:
                yield len(section), self._by_piece(section)
            elif section:
                within = cuts[done : bisect_left(cuts, stop)]
                yield from self._section(section, [cut - at for cut in within])
            at = stop

    def _section(self, text: str, cuts: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """As `_encoded`, of what stands between two added tokens: words around the cuts, pieces elsewhere."""
        start, stop = (0, len(text)) if not self._cuts else _window(text, cuts)
        if start:
            yield start, self._by_piece(text[:start])
        if start < stop:
            yield from self._by_word(text[start:stop], [cut - start for cut in cuts])
        if stop < len(text):
            yield len(text) - stop, self._by_piece(text[stop:])

    def _by_word(self, text: str, cuts: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        words = self._cut(text)
        ends = list(accumulate(map(len, words), initial=0))
        if ends[-1] != len(text):
            raise _NotWords
        at = 0
        for cut in [*cuts, len(text)]:
            to = bisect_left(ends, cut)
            if ends[to] != cut:
                raise _NotWords
            yield cut - ends[at], b"".join(map(self._words.__getitem__, words[at:to]))
            at = to

    def _by_piece(self, text: str) -> bytes:
        if len(text) <= LONGEST and (known := self._pieces.get(text)) is not None:
            return known
        if "\n " not in text:
            try:
                return b"".join(self._by_line(text))
            except _Gap:
                pass
        return b"".join(map(self._pieces.__getitem__, ENDS.split(text)))

    def _by_line(self, text: str) -> list[bytes]:
        """The ids of each piece of a text in which no line break stands before a space."""
        found: list[bytes] = []
        *lines, last = LINES.split(text)
        for line in [*[f"{line}\n" for line in lines], last]:
            first, *others = line.split(" ")
            if others and first[-1:].isspace():
                raise _Gap
            found.append(self._pieces[first])
            found += map(self._spaced.__getitem__, others)
        return found

    def _after_space(self, text: str) -> bytes:
        """The ids of a piece without the space that it begins with."""
        if not text or (text[-1].isspace() and text[-1] != "\n"):
            raise _Gap
        return self._of_piece(" " + text)

    def _cut(self, text: str) -> list[str]:
        """The words of what is ASCII in a text, and the pieces with what is not, in order."""
        if text.isascii():
            return self._find(text)
        return [word for piece in ENDS.split(text) for word in (self._find(piece) if piece.isascii() else (piece,))]

    def _of_word(self, word: str) -> bytes:
        if word.isascii():
            return _raw([token.id for token in self._model.tokenize(word.translate(BYTES))])
        return _raw(self._tokenizer.encode(word, add_special_tokens=False).ids)

    def _of_piece(self, piece: str) -> bytes:
        words = self._find(piece) if piece.isascii() else []
        if sum(map(len, words)) == len(piece):
            return b"".join(map(self._words.__getitem__, words))
        return _raw(self._tokenizer.encode(piece, add_special_tokens=False).ids)


class _NotWords(Exception):
    """The tokenizer must be asked."""


class _Gap(Exception):
    """A piece may not end before one of the spaces of a text, since white space stands before it."""


class _Remembered(dict[str, bytes]):
    """Ids by text; `learn` says those of a text that is not remembered."""

    def __init__(self, learn: Callable[[str], bytes]) -> None:
        super().__init__()
        self._learn = learn

    def __missing__(self, text: str) -> bytes:
        ids = self._learn(text)
        if len(self) < MOST_WORDS and len(text) <= LONGEST:
            self[text] = ids
        return ids


def _raw(ids: Sequence[int]) -> bytes:
    return np.array(ids, _ID).tobytes()


def _window(text: str, cuts: Sequence[int]) -> tuple[int, int]:
    """A stretch of a text that begins and ends where pieces do, and holds the cuts; empty where it need not be long."""
    if not cuts:
        return 0, 0
    found = ENDS.search(text, cuts[-1])
    stop = found.start() if found else len(text)
    if len(cuts) == 1 and stop == cuts[0]:
        return stop, stop
    start = text.rfind(" ", 0, cuts[0])
    while start > 0 and text[start - 1].isspace():
        start = text.rfind(" ", 0, start)
    return max(start, 0), stop
