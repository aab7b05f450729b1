"""The chats of the small chat model: what is held out stays apart, both languages are there, answers can be judged."""

from __future__ import annotations

import importlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tunesmith.core.plugins import build, names
from tunesmith.core.run import read_run

HAN = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def seedling(repository: Path) -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository))
        modules = ("chats", "intents", "tables", "wording", "chat_score")
        yield {name: importlib.import_module(f"seedling.{name}") for name in modules}


@pytest.fixture(scope="module")
def aside(seedling: dict[str, ModuleType]) -> list[Any]:
    return seedling["chats"].held_out()


@pytest.fixture(scope="module")
def talks(seedling: dict[str, ModuleType], aside: list[Any]) -> list[Any]:
    return seedling["chats"].training(aside)


def letters(text: str) -> str:
    """Only letters and digits, small, found without the code that is tested."""
    return "".join(sign for sign in text.lower() if sign.isalnum())


def test_the_same_files_are_made_again(
    seedling: dict[str, ModuleType], talks: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("CHATS", "HELD_OUT"):
        monkeypatch.setattr(seedling["chats"], name, tmp_path / getattr(seedling["chats"], name).name)
    seedling["chats"].main([])
    written = (tmp_path / "chats.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in written] == [talk.row() for talk in talks]
    assert len((tmp_path / "chats_held_out.jsonl").read_text(encoding="utf-8").splitlines()) > 300


def test_no_held_out_question_is_trained_on(talks: list[Any], aside: list[Any]) -> None:
    trained = {letters(turn["content"]) for talk in talks for turn in talk.row()["messages"] if turn["role"] == "user"}
    anew = [held for held in aside if held.new == "wording" or len(held.talk.turns) == 2]
    assert len(anew) > 300
    assert not {letters(held.row()["messages"][-2]["content"]) for held in anew} & trained


def test_held_out_askings_are_no_asking_of_any_intent(seedling: dict[str, ModuleType]) -> None:
    intents = seedling["intents"].intents()
    asked = {letters(ask) for intent in intents for ask in intent.parts["ask"]}
    tested = [letters(ask) for intent in intents for ask in intent.parts["test"]]
    assert not asked & set(tested)


def test_held_out_names_and_sums_are_never_filled_in(talks: list[Any], aside: list[Any]) -> None:
    new_names = {held.exchange.keys[0] for held in aside if held.talk.intent == "my_name" and held.new == "values"}
    assert new_names
    said = "\n".join(content for talk in talks for _, content in talk.turns)
    assert not {name for name in new_names if re.search(rf"(?<!\w){name}(?!\w)", said)}


def test_no_chat_stands_twice_and_both_languages_are_there(talks: list[Any]) -> None:
    assert len({talk.turns for talk in talks}) == len(talks)
    count = Counter(talk.language for talk in talks)
    assert set(count) == {"en", "zh"}
    assert 0.45 < count["zh"] / len(talks) < 0.55


def test_the_house_reads_every_row_as_a_chat(talks: list[Any], aside: list[Any]) -> None:
    rows = [*(talk.row() for talk in talks[::40]), *(held.row() for held in aside[::10])]
    for row in rows:
        assert [name for name in names("format") if build("format", name).matches(row)] == ["messages"]  # type: ignore[attr-defined]
    for talk in talks:
        roles = [role for role, _ in talk.turns if role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(role != "system" for role, _ in talk.turns[1:])


def test_every_text_is_whole(talks: list[Any], aside: list[Any]) -> None:
    texts = [content for talk in [*talks, *(held.talk for held in aside)] for _, content in talk.turns]
    for text in texts:
        assert text == text.strip() != ""
        assert not re.search(r"[{}\[\]|]", text)
        assert not re.search(r"\b[Aa] (?!use)[aeiou]\w", text)


def test_answers_are_in_the_language_of_the_chat(talks: list[Any]) -> None:
    for talk in talks:
        if talk.topic in ("translation", "copying", "chain", "memory"):
            continue
        for role, content in talk.turns:
            if role == "assistant" and not re.fullmatch(r"[\d\s+=.。，,-]+", content):
                assert bool(HAN.search(content)) == (talk.language == "zh"), content


def test_every_sum_is_right(talks: list[Any]) -> None:
    sums = [
        match
        for talk in talks
        for role, content in talk.turns
        if role == "assistant"
        for match in re.finditer(r"(\d+) ([+-]) (\d+) = (\d+)", content)
    ]
    assert len(sums) > 500
    for match in sums:
        a, b, c = (int(match[group]) for group in (1, 3, 4))
        assert (a + b if match[2] == "+" else a - b) == c


def test_what_was_told_is_what_is_answered(talks: list[Any]) -> None:
    for talk in talks:
        if talk.topic in ("memory", "named") and talk.intent in ("name", "model_name", "user_name"):
            told, answer = talk.turns[0][1] + talk.turns[1][1], talk.turns[-1][1]
            name = re.search(r"(?:name is |叫)(.+?)[.。]$", answer)
            assert name is not None and name[1] in told


def test_held_out_answers_are_judged_right_and_others_wrong(seedling: dict[str, ModuleType], aside: list[Any]) -> None:
    right = seedling["intents"].right
    for held in aside:
        row = held.row()
        assert right(row["messages"][-1]["content"], row["accepted"], row["keys"])
        assert not right("blah blah", row["accepted"], row["keys"])


@pytest.mark.parametrize(
    ("answer", "keys", "verdict"),
    [
        ("2 + 1 = 3.", ["3"], True),
        ("2 + 1 = 13.", ["3"], False),
        ("You are welcome!", ["welcome|pleasure"], True),
        ("English only.", ["English", "Chinese"], False),
        ("我叫小种子。", ["小种子"], True),
        ("我叫小苗。", ["小种子"], False),
    ],
)
def test_key_words_are_whole_words(
    seedling: dict[str, ModuleType], answer: str, keys: list[str], verdict: bool
) -> None:
    assert seedling["intents"].right(answer, [], keys) is verdict


def test_the_identity_is_not_that_of_the_example(talks: list[Any]) -> None:
    said = [content for talk in talks for role, content in talk.turns if role == "assistant"]
    assert not [text for text in said if "Sprout" in text or "小苗" in text]
    assert sum("Seedling" in text for text in said) > 50
    assert sum("小种子" in text for text in said) > 50


@pytest.mark.parametrize(
    ("template", "row", "text"),
    [
        ("Is a {animal} big?", {"animal": "owl"}, "Is an owl big?"),
        ("{Thing} is {colour}.", {"thing": "the sky", "colour": "blue"}, "The sky is blue."),
    ],
)
def test_slots_are_filled(seedling: dict[str, ModuleType], template: str, row: dict[str, str], text: str) -> None:
    assert seedling["wording"].filled(template, row) == text


def test_brackets_are_choices_inside_choices(seedling: dict[str, ModuleType]) -> None:
    assert set(seedling["wording"].lines("my [colo[u|]r|cat]!")) == {"my colour!", "my color!", "my cat!"}


@pytest.mark.parametrize(
    ("simple", "other"),
    [("头发很干净", "頭髮很乾淨"), ("一只小鸟有几条腿？", "一隻小鳥有幾條腿？"), ("只是一公里", "只是一公里")],
)
def test_traditional_script(seedling: dict[str, ModuleType], simple: str, other: str) -> None:
    assert seedling["wording"].traditional(simple) == other


def test_shares_are_counted_by_language(seedling: dict[str, ModuleType]) -> None:
    score = seedling["chat_score"]
    row = {"topic": "thanks", "new": "wording", "language": "en", "accepted": ["You are welcome!"], "keys": []}
    scored = [score.Scored(row, "you are welcome"), score.Scored(row, "no")]
    assert list(score.table(scored))[-1].split() == ["all", "50.0%", "of", "2", "-"]


def test_the_run_file_is_one(repository: Path) -> None:
    run = read_run(repository / "seedling" / "chat.yaml")
    assert run.data[0].path == "seedling/build/chats.jsonl"
    assert run.validation.data[0].path == "seedling/build/chats_held_out.jsonl"
