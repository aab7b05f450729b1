"""How many held-out questions a model answers right: asked greedily, counted by topic and language.

    model, held-out rows ─▶ answers ─▶ right or not ─▶ one table; every wrong answer is told with `--score`

An answer is right where it is one of those the intent accepts, or has the key words of a right one
(`intents.right`). It says whether a question was understood, not how good an answer would be to a person.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from seedling import CHAT_SCORE, LANGUAGES
from seedling.intents import right
from tunesmith.core.records import Chat, Message
from tunesmith.core.run import ModelSpec
from tunesmith.core.rundir import write_json
from tunesmith.generate.engines.local import Local
from tunesmith.generate.sampling import Sampling

LONGEST = 96
"""Tokens of an answer; the longest in the data has fewer."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scored:
    """A held-out row with the answer it got."""

    row: Row
    answer: str

    @property
    def right(self) -> bool:
        return right(self.answer, self.row["accepted"], self.row["keys"])


def score(model: str, rows: Sequence[Row]) -> list[Scored]:
    """Ask a model every held-out question and judge its answers; the same model always answers the same."""
    engine = Local().open(ModelSpec(path=model))
    asks = [Chat(tuple(Message(turn["role"], turn["content"]) for turn in row["messages"][:-1])) for row in rows]
    answers = engine.answer(asks, Sampling(max_tokens=LONGEST))
    return [Scored(row, answer.text) for row, answer in zip(rows, answers, strict=True)]


def show(model: str, rows: Sequence[Row]) -> None:
    """Print what went wrong, then the share of right answers by topic and language."""
    scored = score(model, rows)
    for one in scored:
        if not one.right:
            print(f"{one.row['language']} {one.row['intent']}: {one.row['messages'][-2]['content']} ─▶ {one.answer!r}")
    print("\n".join(table(scored)))


def keep(model: str, rows: Sequence[Row]) -> None:
    """Write what the model card shows: the share of right answers by topic, and the first answer of each topic."""
    scored = score(model, rows)
    samples: dict[tuple[str, str], list[str]] = {}
    for one in scored:
        if len(one.row["messages"]) == 2:  # a question with nothing before it
            told = [one.row["messages"][-2]["content"], one.answer, "yes" if one.right else "no"]
            samples.setdefault((one.row["topic"], one.row["language"]), told)
    topics = list(dict.fromkeys(one.row["topic"] for one in scored))
    order = [(topic, language) for topic in topics for language in LANGUAGES if (topic, language) in samples]
    shares = [*_shares(scored, "topic"), _line("all", scored)]
    write_json(CHAT_SCORE, {"topics": shares, "samples": [samples[place] for place in order]})


def table(scored: Sequence[Scored]) -> Iterator[str]:
    """The lines of the table: topics, then what is new in the questions, then all."""
    for name, *cells in (
        ["", *LANGUAGES.values()],
        *_shares(scored, "topic"),
        *_shares(scored, "new"),
        _line("all", scored),
    ):
        yield f"{name:16}" + "".join(f"{cell:>16}" for cell in cells)


def _shares(scored: Sequence[Scored], part: str) -> Iterator[list[str]]:
    """For each value of a part of the rows: its name, and the share that is right in each language."""
    for name in dict.fromkeys(one.row[part] for one in scored):
        yield _line(name, [one for one in scored if one.row[part] == name])


def _line(name: str, scored: Sequence[Scored]) -> list[str]:
    return [name, *(_share([one.right for one in scored if one.row["language"] == code]) for code in LANGUAGES)]


def _share(verdicts: Sequence[bool]) -> str:
    return f"{sum(verdicts) / len(verdicts):.1%} of {len(verdicts)}" if verdicts else "-"
