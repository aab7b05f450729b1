"""What people ask a small model, and what it answers: one intent each, in one language.

    chats/*.yaml ─▶ Intent ─▶ Exchange: question, answer, all answers that are right

`ask` is trained on; the askings of `test` are only measured, and so are the rows that an intent holds out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml

from seedling import LANGUAGES, ROOT
from seedling.tables import Row, held_out, rows
from seedling.wording import filled, lines, normal, varied

FILES = ("self", "talk", "facts", "words", "numbers", "play", "unknown", "turns")
COUNT = 32
"""Training exchanges of an intent in a language, where it does not say."""
HELD = 2
ATTEMPTS = 40

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question with its answer; `before` are the turns that a later question refers to, or a system turn."""

    question: str
    answer: str
    accepted: tuple[str, ...]
    keys: tuple[str, ...]
    before: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Intent:
    """One thing that is asked, in one language, with all that its askings and answers are made of."""

    topic: str
    name: str
    language: str
    parts: dict[str, list[str]]
    keys: list[str]
    options: dict[str, Any]
    rows: list[Row]

    @property
    def turns(self) -> bool:
        """Whether it refers to an earlier turn."""
        return "tell" in self.parts or "system" in self.parts

    @property
    def plain(self) -> bool:
        """Whether its answers are short, so that it may stand among others."""
        return bool(self.options.get("plain", True)) and not self.turns

    def usable(self, held: bool) -> list[Row]:
        """The rows that may be trained on, or those that may not."""
        if not self.options.get("new"):
            return [] if held else self.rows
        return [row for row in self.rows if held_out(row) == held]

    def train(self, chance: random.Random) -> list[Exchange]:
        """The training exchanges, no question twice."""
        return self._distinct(self.parts["ask"], self.usable(False), self.options.get("count", COUNT), chance)

    def test(self, chance: random.Random) -> list[tuple[str, Exchange]]:
        """Held-out exchanges, with what is new in each: its wording, or the values that are filled in."""
        count: int = self.options.get("held", HELD)
        values = self.usable(True)
        worded = count - count // 2 if values else count
        new = self._distinct(self.parts["test"], self.usable(False), worded, chance, plain=True)
        known = self._distinct(self.parts["ask"], values, count - worded, chance, plain=True) if values else []
        return [("wording", exchange) for exchange in new] + [("values", exchange) for exchange in known]

    def follow(self, chance: random.Random, first: Exchange) -> Exchange | None:
        """A second question about another row, after the first was answered."""
        asked = self._exchange(chance.choice(self.parts["follow"]), chance.choice(self.usable(False)), chance, True)
        return None if asked.answer == first.answer else asked

    def _distinct(
        self, asks: Sequence[str], given: Sequence[Row], count: int, chance: random.Random, plain: bool = False
    ) -> list[Exchange]:
        found: dict[str, Exchange] = {}
        pairs = zip(_around(asks, chance), _around(given, chance), strict=False)
        for _, (ask, row) in zip(range(count * ATTEMPTS), pairs, strict=False):
            exchange = self._exchange(ask, row, chance, plain)
            found.setdefault(" ".join(content for _, content in exchange.before) + exchange.question, exchange)
            if len(found) == count:
                break
        return list(found.values())

    def _exchange(self, ask: str, row: Row, chance: random.Random, plain: bool) -> Exchange:
        bare, exact = bool(self.options.get("bare")) or self.turns, bool(self.options.get("exact")) or self.turns
        if plain:
            question = filled(ask, row)
        elif exact:
            question = filled(varied(ask, self.language, chance, bare), row)
        else:
            question = varied(filled(ask, row), self.language, chance, bare)
        answers = self._answers([row])
        accepted = answers if self.keys or self.turns or "{" in ask else self._answers(self.rows)
        keys = tuple(filled(key, row) for key in self.keys)
        return Exchange(question, chance.choice(answers), accepted, keys, tuple(self._before(row, chance)))

    def _answers(self, given: Sequence[Row]) -> tuple[str, ...]:
        """All answers from these rows; where a question has no slots, those from every row are right."""
        return tuple(filled(answer, row) for row in given for answer in self.parts["answers"])

    def _before(self, row: Row, chance: random.Random) -> Iterator[tuple[str, str]]:
        if "system" in self.parts:
            yield "system", filled(chance.choice(self.parts["system"]), row)
        if "tell" in self.parts:
            yield "user", filled(varied(chance.choice(self.parts["tell"]), self.language, chance, True), row)
            yield "assistant", filled(chance.choice(self.parts["heard"]), row)


def intents() -> list[Intent]:
    """All intents, in the order of the files."""
    return [
        _intent(topic, name, language, told)
        for file in FILES
        for topic, members in yaml.safe_load((ROOT / "chats" / f"{file}.yaml").read_text(encoding="utf-8")).items()
        for name, told in members.items()
        for language in LANGUAGES
        if language in told
    ]


def _intent(topic: str, name: str, language: str, told: dict[str, Any]) -> Intent:
    own = told[language]
    parts = {part: lines(own[part]) for part in own if part != "keys"}
    keys = [key.strip() for key in own.get("keys", "").split(",") if key]
    options = {option: value for option, value in told.items() if option not in LANGUAGES}
    given: list[Row] = rows(options["rows"], language) if "rows" in options else [{}]
    return Intent(topic, name, language, parts, keys, options, given)


def right(answer: str, accepted: Sequence[str], keys: Sequence[str]) -> bool:
    """Whether an answer is one of those accepted, or has every key word; of a|b either will do."""
    if normal(answer) in {normal(one) for one in accepted}:
        return True
    return bool(keys) and all(any(_has(answer, word) for word in key.split("|")) for key in keys)


def _has(answer: str, word: str) -> bool:
    return re.search(rf"(?<![a-z0-9]){re.escape(word.casefold())}(?![a-z0-9])", answer.casefold()) is not None


def _around(items: Sequence[Item], chance: random.Random) -> Iterator[Item]:
    """The items again and again, each time in another order."""
    while items:
        yield from chance.sample(items, len(items))
