"""Records: one example each, typed by what can be learned from it.

    rows ─▶ Record ─▶ TokenRow ─▶ Batch

A format reads a row of a file into a Record; a template turns a Record into tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row stands: file, line (from 1; 0 where a file has none) and byte offset (-1 where unknown)."""

    file: str
    line: int = 0
    offset: int = -1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat, in the form that chat templates read.

    learn: whether its tokens are targets; None leaves the choice to the run. weight scales its tokens' loss.
    """

    role: Role
    content: str
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    reasoning: str | None = None
    name: str | None = None
    learn: bool | None = None
    weight: float = 1.0

    def plain(self) -> dict[str, Any]:
        """The message as chat templates take it; absent parts are absent keys."""
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            out["tool_calls"] = [dict(call) for call in self.tool_calls]
        if self.reasoning is not None:
            out["reasoning_content"] = self.reasoning
        if self.name is not None:
            out["name"] = self.name
        return out


@dataclass(frozen=True, slots=True)
class Record:
    """One example; `place` tells where it came from."""

    place: Place = field(default=Place(""), kw_only=True)


@dataclass(frozen=True, slots=True)
class Text(Record):
    """Plain text to continue."""

    text: str


@dataclass(frozen=True, slots=True)
class Chat(Record):
    """A conversation; the assistant's turns are what is learned."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Preference(Record):
    """A prompt with a better and a worse answer (each one or more turns)."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Rated(Record):
    """A prompt and one answer, found good or bad (KTO)."""

    prompt: tuple[Message, ...]
    answer: tuple[Message, ...]
    good: bool
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Labelled(Record):
    """A text and its labels: one, or any number where several may apply at once."""

    text: str
    labels: tuple[str, ...]

    @property
    def label(self) -> str:
        """The labels as one text, as an answer that names them."""
        return ", ".join(self.labels)


@dataclass(frozen=True, slots=True)
class Tagged(Record):
    """Words, each with its tag."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Related(Record):
    """A text beside others, each with a grade of how near it is.

    A pair: one other, grade 1. A triplet: a near one and far ones, grades 1 and 0. A scored pair: any grade.
    """

    query: str
    others: tuple[str, ...]
    grades: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Prompt(Record):
    """A prompt to answer, with the key that an answer is checked against."""

    messages: tuple[Message, ...]
    answer: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()


KINDS: tuple[type[Record], ...] = (Text, Chat, Preference, Rated, Labelled, Tagged, Related, Prompt)
