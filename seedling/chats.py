"""The chats that `builtin:seedling-chat` is tuned on: short exchanges in two languages, alone and in turns.

    chats/*.yaml ─▶ intents ─┬─▶ single exchanges ───┬─▶ build/chats.jsonl   {"messages", "topic", "intent", "language"}
                             ├─▶ follow-up questions ┤
                             ├─▶ chains of several ──┘
                             └─▶ held-out askings ─────▶ build/chats_held_out.jsonl   and {"new", "accepted", "keys"}

No question of a held-out chat is asked in a training chat, however it is written. Every line was written for this
project, nothing comes from elsewhere, and the same lines always make the same files.

    python -m seedling.chats                    # writes both files
    python -m seedling.chats --score MODEL      # asks a model what was held out
    python -m seedling.chats --keep MODEL       # the same, into the file that the model card is written from
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from seedling import BUILD, LANGUAGES
from seedling.examples import write
from seedling.intents import Exchange, Intent, intents
from seedling.tables import SEED
from seedling.wording import manners, normal, traditional

CHATS = BUILD / "chats.jsonl"
HELD_OUT = BUILD / "chats_held_out.jsonl"
FOLLOWED = 9
"""Follow-up chats of an intent in a language."""
CHAINS = 550
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
Trained = dict[Intent, list[Exchange]]


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

    @property
    def asks_anew(self) -> bool:
        """Whether its question is what no training chat may ask; after another turn it may be one that is known."""
        return self.new == "wording" or not self.exchange.before

    def row(self) -> dict[str, Any]:
        right = {"accepted": list(self.exchange.accepted), "keys": list(self.exchange.keys)}
        return {**self.talk.row(), "new": self.new, **right}


def training(aside: Iterable[Held]) -> list[Talk]:
    """The training chats, in an order that follows from the seed, without what is held out."""
    kept = {normal(held.exchange.question) for held in aside if held.asks_anew}
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
    trained = {intent: intent.train(_chance("train", intent)) for intent in intents()}
    for language in LANGUAGES:
        own = {intent: exchanges for intent, exchanges in trained.items() if intent.language == language}
        for talk in (*_singles(own, chance), *_followed(own), *_chains(own, language)):
            yield _dressed(talk, chance)


def _singles(trained: Trained, chance: random.Random) -> Iterator[Talk]:
    """Every exchange by itself; where it is about something said earlier, perhaps with another one in between."""
    short = _short(trained)
    for intent, exchanges in trained.items():
        apart = "tell" in intent.parts and intent.options.get("between", True)
        for exchange in exchanges:
            between = [chance.choice(trained[chance.choice(short)])] if apart and chance.random() < SHARED else []
            yield _talk(intent, exchange, [*exchange.before, *_said(between)])


def _followed(trained: Trained) -> Iterator[Talk]:
    """A question, and a second one that is only understood from it."""
    for intent in trained:
        chance = _chance("follow", intent)
        for first in chance.choices(trained[intent], k=FOLLOWED) if "follow" in intent.parts else ():
            second = intent.follow(chance, first)
            if second is not None:
                yield _talk(intent, second, _said([first]))


def _chains(trained: Trained, language: str) -> Iterator[Talk]:
    """Several exchanges one after another, perhaps from a greeting to a goodbye."""
    chance = random.Random(f"{SEED} chains {language}")
    short = _short(trained)
    ends = {topics: [one for one in short if one.topic in topics] for topics in (OPENING, CLOSING)}
    middle = [one for one in short if one.topic not in OPENING + CLOSING]
    for _ in range(CHAINS):
        taken = chance.sample(middle, chance.choice((1, 2, 2)))
        if chance.random() < 0.4 or len(taken) == 1:
            taken.insert(0, chance.choice(ends[OPENING]))
        if chance.random() < 0.4:
            taken.append(chance.choice(ends[CLOSING]))
        *before, last = [chance.choice(trained[intent]) for intent in taken]
        talk = _talk(taken[-1], last, _said(before))
        yield replace(talk, topic="chain", intent="chain")


def _short(trained: Trained) -> list[Intent]:
    return [intent for intent in trained if intent.plain]


def _said(exchanges: Iterable[Exchange]) -> list[Turn]:
    return [turn for one in exchanges for turn in (("user", one.question), ("assistant", one.answer))]


def _talk(intent: Intent, exchange: Exchange, before: Iterable[Turn] | None = None) -> Talk:
    turns = (*(exchange.before if before is None else before), *_said([exchange]))
    return Talk(intent.topic, intent.name, intent.language, turns)


def _dressed(talk: Talk, chance: random.Random) -> Talk:
    """Some chats with a system turn, some Chinese ones in traditional characters."""
    turns = talk.turns
    if not talk.instructed and talk.topic != "stories" and chance.random() < INSTRUCTED:
        turns = (("system", chance.choice(manners()[talk.language]["system"])), *turns)
    if talk.language == "zh" and chance.random() < TRADITIONAL:
        turns = tuple((role, traditional(content)) for role, content in turns)
    return replace(talk, turns=turns)


def _chance(purpose: str, intent: Intent) -> random.Random:
    return random.Random(f"{SEED} {purpose} {intent.topic} {intent.name} {intent.language}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m seedling.chats", description="The chats of seedling-chat.")
    parser.add_argument("--score", metavar="MODEL", help="ask this model what is held out, and write nothing")
    parser.add_argument("--keep", metavar="MODEL", help="ask this model what is held out, for its card")
    chosen = parser.parse_args(arguments)
    if model := chosen.score or chosen.keep:
        from seedling.chat_score import keep, show  # need torch, which writing the files does not

        (show if chosen.score else keep)(model, [held.row() for held in held_out()])
        return
    aside = held_out()
    talks = training(aside)
    write(CHATS.parent, CHATS.stem, (talk.row() for talk in talks))
    write(HELD_OUT.parent, HELD_OUT.stem, (held.row() for held in aside))
    print(f"{len(talks):,} chats, {len(aside):,} held out")


if __name__ == "__main__":
    main()
