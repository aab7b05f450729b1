"""What a template writes for all chats of one shape, found by running it once with marks in place of texts.

    user: ▮0   assistant: ▮1  ──▶ Template ──▶  <|im_start|>user⏎ ▮0 <|im_end|>⏎<|im_start|>assistant⏎ ▮1 <|im_end|>⏎
                                                └─ pieces, into which the texts of every such chat are put ─────────┘

Most templates only put texts between other texts. Whether this one does so for a shape (the roles in order, and which
texts are empty) is not guessed: a mark is a string that tells a template nothing (`opaque.py`). Whatever would let it
see more than that there is a text ends the attempt, and chats of that shape are rendered one by one, as they are where
the first real one does not come out the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date as Date
from functools import cached_property
from typing import Any

from tunesmith.core.records import ROLES
from tunesmith.data.opaque import MARK, TRACE, Opaque, Strips, Trace, compile_opaque
from tunesmith.data.sandbox import MAX_TEXT, MAX_WORK, METER

MOST_SHAPES = 1 << 10
"""How many shapes are remembered."""
RETURNS = 8
"""A shape is looked at when it has come so often."""

_MARKS = re.compile(f"{MARK}(.)", re.DOTALL)

Chat = Sequence[Mapping[str, Any]]
Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """What is written for every chat of a shape whose texts together have at most so many characters.

    pieces: what the template writes, an empty piece wherever a text goes; places: for each of these the piece, the
    message, and how its text is stripped: methods with their characters.
    """

    pieces: tuple[str, ...]
    places: tuple[tuple[int, int, Strips], ...]
    longest: int

    def fill(self, texts: Sequence[str]) -> str | None:
        """The chat with these texts; None where it is too long to be sure that no limit is passed."""
        if sum(map(len, texts)) > self.longest:
            return None
        pieces = [*self.pieces]
        for at, number, strips in self.places:
            text = texts[number]
            for name, characters in strips:
                text = getattr(text, name)(characters)
            pieces[at] = text
        return "".join(pieces)


class Shapes:
    """The shapes of one template."""

    def __init__(self, source: str, specials: Mapping[str, str], date: Date) -> None:
        self._source = source
        self._specials = specials
        self._date = date
        self._seen: Counter[Key] = Counter()
        self._known: dict[Key, Shape | None] = {}

    def text(self, key: Key, chat: Chat) -> str | None:
        """A chat as text, without its template; None where that is not known."""
        shape = self._known.get(key)
        return None if shape is None else shape.fill([message["content"] for message in chat])

    def due(self, key: Key) -> bool:
        """Count a chat that its template writes; whether its shape is to be looked at."""
        if key in self._known or len(self._seen) >= MOST_SHAPES:
            return False
        self._seen[key] += 1
        return self._seen[key] >= RETURNS

    def learn(self, key: Key, chat: Chat, right: str, names: Mapping[str, Any]) -> None:
        """Look at a shape; right: what its template writes for one chat of it; names: what it is given beside it."""
        self._known[key] = None
        shape = self._traced(chat, names)
        if shape is not None and shape.fill([message["content"] for message in chat]) == right:
            self._known[key] = shape

    @cached_property
    def _template(self) -> Any | None:
        """The template for marks; None where they could be lost in it, or met."""
        return None if MARK in "".join(self._specials.values()) else compile_opaque(self._source, self._date)

    def _traced(self, chat: Chat, names: Mapping[str, Any]) -> Shape | None:
        """None where the template looks into texts, or fails."""
        trace = Trace()
        contents = [message["content"] and trace.mark(number) for number, message in enumerate(chat)]
        marked = [{**message, "content": content} for message, content in zip(chat, contents, strict=True)]
        try:
            if self._template is None:
                return None
            text = "".join(self._template.generate({**names, "messages": marked, METER: trace.meter, TRACE: trace}))
        except Exception:  # whatever it is, it shows again when the template itself writes such a chat
            return None
        return None if trace.unclear else _shape(text, trace)


def key_of(chat: Chat, ask: bool) -> Key | None:
    """The shape of a chat, if it is of roles and texts alone; ask: whether the prompt for an answer follows."""
    key: list[Any] = [ask]
    for message in chat:
        if len(message) != 2 or message.get("role") not in ROLES or type(message.get("content")) is not str:
            return None
        key += (message["role"], not message["content"])
    return tuple(key)


def _shape(text: str, trace: Trace) -> Shape:
    trace.note(text)
    split = _MARKS.split(text)
    pieces = [piece if at % 2 == 0 else "" for at, piece in enumerate(split)]
    places = [(at, *trace.marks[Opaque.number(split[at])]) for at in range(1, len(split), 2)]
    return Shape(tuple(pieces), tuple(places), trace.longest(MAX_TEXT, MAX_WORK))
