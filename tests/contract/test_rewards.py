"""What every reward keeps: a finite number for each answer, whatever stands beside it; and their weighted sum."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny

from tunesmith.core.plugins import build, doc, find, names
from tunesmith.core.problem import Problem
from tunesmith.core.records import Message
from tunesmith.rewards import Asked, Judge, Reward
from tunesmith.rewards._rule import Rule
from tunesmith.rewards._sum import Sum

MINE = "def reward(prompt, answer, key):\n    return (answer == key) - len(answer) / 100\n"
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "exact": [{}, {"ignore": ["case", "spaces", "punctuation"]}],
    "format": [{}, {"form": "think"}, {"form": "json"}, {"form": "pattern", "pattern": ".*18.*"}],
    "length": [{}, {"side": "about", "tokens": 5, "slack": 3, "cut": 0.5}],
    "model": [{}, {"batch_tokens": 1}, {"max_tokens": 70}],
    "number": [{}, {"unmarked": "wrong", "percent": "hundredths", "tolerance": 0.1}],
}
CASES = [
    pytest.param((name, options), id=f"{name}-{options}")
    for name in names("reward")
    for options in VARIANTS.get(name, [{}])
]
FIRST = (Message("user", "What is 3 times 6?"),)
SECOND = (Message("system", "Be short."), Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "2?"))
TEXTS = [
    "18",
    "It is #### 18",
    "",
    " ",
    "<think>3 * 6</think> <answer>18</answer>",
    "<think>3 * 6</think> 18",
    '{"a": 18}',
    "你好 1/0 ٣",
    "#" * 50,
]
ASKED = [
    Asked(messages, text, "18", len(text) * 9, ended)
    for messages in (FIRST, SECOND)
    for text, ended in zip(TEXTS, ("stop", "length", "stop") * 3, strict=True)
]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("scorer"), head="score")


@pytest.fixture
def needed(scorer: Path, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Options without which a reward is none."""
    (tmp_path / "mine.py").write_text(MINE)
    return {"model": {"path": str(scorer), "dtype": "float32"}, "python": {"path": str(tmp_path / "mine.py")}}


def constant(*values: object) -> Reward:
    """A reward that gives what it is told to."""

    class Constant(Reward):
        def open(self, beside: object = None) -> Judge:
            return lambda asked: list(values)  # type: ignore[arg-type]

    return Constant()


@pytest.fixture(params=CASES)
def judge(request: pytest.FixtureRequest, needed: dict[str, dict[str, Any]]) -> Judge:
    name, options = request.param
    found = build("reward", {name: {**needed.get(name, {}), **options}})
    assert isinstance(found, Reward)
    return found.open()


@pytest.mark.parametrize("name", names("reward"))
def test_a_reward_is_options_that_say_what_they_are(name: str) -> None:
    kind = find("reward", name)
    assert issubclass(kind, Reward)
    assert doc(kind)
    assert list(inspect.signature(kind.open).parameters) == ["self", "beside"]


def test_every_answer_has_a_finite_number_and_the_empty_one_too(judge: Judge) -> None:
    found = judge(ASKED)
    assert len(found) == len(ASKED)
    assert all(isinstance(value, float) and math.isfinite(value) for value in found)
    assert judge([]) == []


def test_a_number_does_not_depend_on_what_stands_beside(judge: Judge) -> None:
    together = judge(ASKED)
    assert judge(ASKED[::-1]) == pytest.approx(together[::-1], abs=1e-5)
    assert [judge([one])[0] for one in ASKED] == pytest.approx(together, abs=1e-5)
    assert judge(ASKED) == together
    assert judge([ASKED[1]] * 3) == pytest.approx([together[1]] * 3, abs=1e-5)


def test_some_answers_are_better_than_others(judge: Judge) -> None:
    assert len(set(judge(ASKED))) > 1


@pytest.mark.parametrize("name", ["exact", "number"])
def test_a_key_that_nothing_can_be_checked_against_is_told_with_its_prompt(name: str) -> None:
    reward = build("reward", name)
    assert isinstance(reward, Reward)
    assert reward.unfit("18") is None
    assert reward.unfit("")
    with pytest.raises(Problem, match=r"reward \w+: answer 2 \(to 'What is 3 times 6\?'\): .*answer key"):
        reward.open()([ASKED[0], Asked(FIRST, "18", " ")])


class TestSum:
    def test_adds_up_by_weight_and_keeps_each_by_name(self) -> None:
        rewards = [
            build("reward", {"exact": {"weight": 2.0}}),
            build("reward", {"length": {"tokens": 1, "slack": 4, "weight": 0.5}}),
            build("reward", {"exact": {"weight": -1.0, "ignore": ["punctuation"]}}),
        ]
        judged = Sum([one for one in rewards if isinstance(one, Reward)])(
            [Asked(FIRST, "18", "18", 3), Asked(FIRST, "18.", "18", 5), Asked(FIRST, "", "18", 1)]
        )
        assert judged.parts == {"exact": (1, 0, 0), "length": (-0.5, -1, 0), "exact_2": (1, 1, 0)}
        assert judged.totals == pytest.approx((2 - 0.25 - 1, -0.5 - 1, 0))
        assert judged.figures == pytest.approx(
            {"reward": -0.75 / 3, "reward_exact": 1 / 3, "reward_length": -0.5, "reward_exact_2": 2 / 3}
        )

    def test_of_nothing_is_nothing(self) -> None:
        judged = Sum([constant()])([])
        assert (judged.totals, judged.figures) == ((), {})
        assert Sum([])([ASKED[0]]).totals == (0.0,)

    @pytest.mark.parametrize("value", [math.nan, math.inf, None, "good", 1j])
    def test_what_is_no_number_is_told_with_its_row(self, value: object) -> None:
        with pytest.raises(Problem, match=r"gave .* for answer 2 \(to 'What is 3 times 6\?'\).*finite number"):
            Sum([constant(1.0, value)])([Asked(FIRST, "a"), Asked(FIRST, "b")])

    def test_too_few_numbers_are_told(self) -> None:
        with pytest.raises(Problem, match="gave 1 numbers for 2 answers"):
            Sum([constant(1.0)])(ASKED[:2])

    def test_says_which_reward_a_key_is_unfit_for(self) -> None:
        rewards = Sum([found for name in ("length", "number") if isinstance(found := build("reward", name), Rule)])
        assert rewards.unfit("18") is None
        assert rewards.unfit("none") == "number: there is no number in the answer key"


def test_a_weight_is_a_finite_number() -> None:
    with pytest.raises(Problem, match=r"exact\.weight"):
        build("reward", {"exact": {"weight": math.inf}})


def test_what_a_reward_needs_stands_in_the_schema() -> None:
    from tunesmith.core.schema import load

    told = load()["x-plugins"]["reward"]
    assert sorted(told) == list(names("reward"))
    assert json.dumps(told["length"]["options"]["tokens"])
