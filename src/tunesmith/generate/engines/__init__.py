"""The contract of engines: what answers. One file an engine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tunesmith.core.plugins import Plugin
from tunesmith.core.records import Message
from tunesmith.generate.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to one chat: its text, its tokens, and why it ended (`stop` or `length`)."""

    text: str
    tokens: tuple[int, ...]
    ended: str


class Engine(Plugin):
    """What answers chats."""

    @abstractmethod
    def answer(self, chats: Sequence[Sequence[Message]], sampling: Sampling) -> Iterator[Answer]:
        """One answer to each chat, in their order."""

    @abstractmethod
    def stream(self, chat: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        """The text of one answer, piece by piece."""
