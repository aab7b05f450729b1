"""The chats that `builtin:seedling-chat` is tuned on: short exchanges in English and Chinese, alone and one after another.

    chats/*.yaml ─▶ intents ─┬─▶ single exchanges ─┬─▶ build/chats.jsonl           {"messages", "topic", "intent", "language"}
                             ├─▶ follow-up questions ┤
                             ├─▶ chains of several ──┘
                             └─▶ held-out askings ───▶ build/chats_held_out.jsonl  and {"new", "accepted", "keys"}

No question of a held-out chat is asked in a training chat, however it is written. Every line was written for this
project, nothing comes from elsewhere, and the same lines always make the same files.

    python -m seedling.chats                    # writes both files
    python -m seedling.chats --score MODEL      # asks a model what was held out
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from seedling import BUILD
from seedling.examples import write
from seedling.intents import LANGUAGES, Exchange, Intent, intents
from seedling.tables import SEED
from seedling.wording import manners, normal, traditional

CHATS = BUILD / "chats.jsonl"
HELD_OUT = BUILD / "chats_held_out.jsonl"
FOLLOWED = 16
"""Follow-up chats of an intent in a language."""
CHAINS = 900
"""Chats of several exchanges, in each language."""
INSTRUCTED = 0.07
"""Share of chats that a system turn opens, beside those whose system turn gives a name."""
TRADITIONAL = 0.08
"""Share of the Chinese chats in traditional characters."""
SHARED = 0.4
"""Share of the chats about something said earlier where something else is said in between."""
OPENING = ("greetings", "how_are_you")
CLOSING = ("thanks", "goodbyes")

Turn = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Talk:
    """A chat with what it is about."""

    topic: str
    intent: str
    language: str
    turns: tuple[Turn, ...]

    @property
    def instructed(self) -> bool:
        return self.turns[0][0] == "system"

    def asked(self) -> set[str]:
        """What the user says, in whatever way it is written."""
        return {normal(content) for role, content in self.turns if role == "user"}

    def row(self) -> dict[str, Any]:
        facts = asdict(self)
        turns = facts.pop("turns")
        return {"messages": [{"role": role, "content": content} for role, content in turns], **facts}


@dataclass(frozen=True, slots=True)
class Held:
    """A chat that is only measured, whose last answer is to be given; `new` is its wording, or its values."""

    talk: Talk
    new: str
    exchange: Exchange

    def row(self) -> dict[str, Any]:
        right = {"accepted": list(self.exchange.accepted), "keys": list(self.exchange.keys)}
        return {**self.talk.row(), "new": self.new, **right}


def training(aside: Iterable[Held]) -> list[Talk]:
    """The training chats, in an order that follows from the seed, without what is held out."""
    kept = {normal(held.exchange.question) for held in aside if not held.exchange.before}
    found: dict[tuple[Turn, ...], Talk] = {}
    for talk in _all():
        if not talk.asked() & kept:
            found.setdefault(talk.turns, talk)
    talks = list(found.values())
    random.Random(SEED).shuffle(talks)
    return talks


def held_out() -> list[Held]:
    """What is only measured: askings that no training chat has, and rows that none is filled from."""
    return [
        Held(_talk(intent, exchange), new, exchange)
        for intent in intents()
        for new, exchange in intent.test(_chance("test", intent))
    ]


def _all() -> Iterator[Talk]:
    """Every training chat, some of them opened by a system turn and some in traditional characters."""
    chance = random.Random(f"{SEED} dress")
    for language in LANGUAGES:
        own = [intent for intent in intents() if intent.language == language]
        singles = {intent: intent.train(_chance("train", intent)) for intent in map(_keyed, own)}
        for talk in (*_singles(singles), *_followed(singles), *_chains(singles, language)):
            yield _dressed(talk, chance)


@dataclass(frozen=True, slots=True)
class Keyed:
    """An intent that can be looked up by."""

    topic: str
    name: str
    intent_place: int
