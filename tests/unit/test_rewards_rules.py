"""Rewards by rule: real solutions of GSM8K, forms, lengths, and functions of a user's own."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.core.plugins import build
from tunesmith.core.problem import Problem
from tunesmith.core.records import Message
from tunesmith.rewards import Asked, Reward

PROMPT = (Message("system", "Be short."), Message("user", "How many?"))


def worth(reward: str, text: str, key: str = "", *, tokens: int = 0, ended: str = "stop", **options: Any) -> float:
    """What one answer is worth by one reward."""
    found = build("reward", {reward: options})
    assert isinstance(found, Reward)
    return found.open()([Asked(PROMPT, text, key, tokens, ended)])[0]


@pytest.fixture(scope="module")
def solutions(shared_data: Path) -> list[str]:
    """Gold solutions of GSM8K, which end in `#### n`."""
    with gzip.open(shared_data / "benchmarks" / "gsm8k_train.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line)["answer"] for line in itertools.islice(lines, 1000)]


def final(solution: str) -> int:
    """The oracle: what stands after the marker, as an integer."""
    return int(solution.split("#### ")[1].replace(",", ""))


class TestNumber:
    def test_every_gold_solution_is_right_and_that_of_another_row_is_not(self, solutions: list[str]) -> None:
        reward = build("reward", "number")
        assert isinstance(reward, Reward)
        judge = reward.open()
        assert set(judge([Asked(PROMPT, one, one) for one in solutions])) == {1.0}
        assert set(judge([Asked(PROMPT, one, str(final(one))) for one in solutions])) == {1.0}
        others = list(itertools.pairwise(solutions))
        found = judge([Asked(PROMPT, one, other) for one, other in others])
        assert found == [float(final(one) == final(other)) for one, other in others]
        assert sum(found) < 0.05 * len(found)

    def test_without_its_marker_a_solution_is_judged_by_its_last_number(self, solutions: list[str]) -> None:
        bare = [f"The answer is {final(one):,}." for one in solutions[:500]]
        assert {worth("number", text, key) for text, key in zip(bare, solutions, strict=False)} == {1.0}
        assert {
            worth("number", text, key, unmarked="wrong") for text, key in zip(bare[:5], solutions, strict=False)
        } == {0.0}

    @pytest.mark.parametrize(
        ("text", "key"),
        [
            ("#### 18", "18"),
            ("I had 5, then #### 18", "18"),
            ("#### 7 and so\n#### 18", "18"),
            ("It costs $1,200.00 in all.", "1200"),
            ("So 1,234,567", "1234567"),
            ("-5", "#### -5"),
            ("\u22125 degrees", "-5"),
            ("-$5", "-5"),
            ("+5", "5"),
            ("0.5", "1/2"),
            ("It is 3/4.", ".75"),
            ("6 / 4", "1.5"),
            ("50%", "50"),
            ("x = 5-3", "3"),
            ("the years 1990-1999", "1999"),
            ("- 5 apples", "5"),
            ("**18**", "18"),
            ("\\boxed{18}", "18"),
            ("1,2,3", "3"),
            ("١٨", "18"),
        ],
    )
    def test_numbers_are_read_as_people_write_them(self, text: str, key: str) -> None:
        assert worth("number", text, key) == 1.0

    @pytest.mark.parametrize(
        ("text", "key"),
        [
            ("", "18"),
            ("none", "18"),
            ("18 #### none", "18"),
            ("#### 19", "18"),
            ("5", "-5"),
            ("18.0001", "18"),
            ("1/0", "1"),
            ("12 3", "123"),
            ("9" * 5000, "9"),
            ("50%", "0.5"),
        ],
    )
    def test_other_numbers_are_wrong(self, text: str, key: str) -> None:
        assert worth("number", text, key) == 0.0

    def test_percent_and_tolerance_are_options(self) -> None:
        assert worth("number", "50%", "0.5", percent="hundredths") == 1.0
        assert [worth("number", text, "200", tolerance=0.01) for text in ("198", "202", "197.9")] == [1, 1, 0]
        assert worth("number", "=> 4 of 9", "4", marker="=>") == 0.0
        assert worth("number", "Answer: 4\n", "4", marker="Answer:") == 1.0

    @given(st.text(alphabet="0123456789,./%$#- +e\u2212", max_size=60))
    def test_no_text_breaks_it(self, text: str) -> None:
        assert worth("number", text, "3") in (0.0, 1.0)

    @given(st.integers(-(10**12), 10**12))
    def test_every_integer_is_itself_in_every_writing(self, number: int) -> None:
        for text in (str(number), f"{number:,}", f"{number}.00", f"It is {number:,}.", f"#### {number}"):
            assert worth("number", text, str(number)) == 1.0
            assert worth("number", text, str(number + 1)) == 0.0


class TestExact:
    @pytest.mark.parametrize(
        ("text", "key", "ignore", "right"),
        [
            (" yes\n", "yes", [], True),
            ("Yes", "yes", [], False),
            ("Yes", "yes", ["case"], True),
            ("STRASSE", "straße", ["case"], True),
            ("a  b", "a b", [], False),
            ("a \n b", "a b", ["spaces"], True),
            ("yes.", "yes", [], False),
            ('"yes".', "yes", ["punctuation"], True),
            ("。是", "是", ["punctuation"], True),
            ("y-es", "yes", ["punctuation"], False),
            ('" A  b! "', "a B", ["case", "spaces", "punctuation"], True),
            ("", "yes", ["case", "spaces", "punctuation"], False),
        ],
    )
    def test_what_differs_is_what_is_not_ignored(self, text: str, key: str, ignore: list[str], right: bool) -> None:
        assert worth("exact", text, key, ignore=ignore) == float(right)


class TestFormat:
    @pytest.mark.parametrize(
        ("form", "text", "right"),
        [
            ("think_answer", "<think>a</think><answer>b</answer>", True),
            ("think_answer", "\n<think>\na\nb</think>\n\n<answer> b </answer>\n", True),
            ("think_answer", "<think>a < b</think><answer>b</answer>", True),
            ("think_answer", "<think> </think><answer>b</answer>", False),
            ("think_answer", "<think>a</think><answer></answer>", False),
            ("think_answer", "x<think>a</think><answer>b</answer>", False),
            ("think_answer", "<think>a</think><answer>b</answer>x", False),
            ("think_answer", "<think>a<think>b</think><answer>b</answer>", False),
            ("think_answer", "<think> </think></think><answer>b</answer>", False),
            ("think_answer", "<answer>b</answer><think>a</think>", False),
            ("think_answer", "<think>" + "a" * 50_000, False),
            ("think", "<think>a</think> 18", True),
            ("think", "<think>a</think>", False),
            ("think", "<think>a</think> 18 </think>", False),
            ("json", ' {"a": [1, "b"]} ', True),
            ("json", "[]", True),
            ("json", "5", False),
            ("json", '{"a": NaN}', False),
            ("json", '{"a": 1} and', False),
            ("json", "[" * 100_000, False),
            ("json", "", False),
        ],
    )
    def test_forms(self, form: str, text: str, right: bool) -> None:
        assert worth("format", text, form=form) == float(right)

    def test_a_pattern_matches_the_whole_answer(self) -> None:
        pattern = r"Answer: \d+"
        found = [worth("format", text, form="pattern", pattern=pattern) for text in ("Answer: 5\n", "Answer: 5!", "5")]
        assert found == [1, 0, 0]
        assert worth("format", "a\nb", form="pattern", pattern="a.b") == 1.0

    def test_a_pattern_that_takes_too_long_is_told(self) -> None:
        with pytest.raises(Problem, match=r"format\.pattern '\(a\|aa\)\+': takes more than 0\.01 seconds"):
            worth("format", "a" * 60 + "b", form="pattern", pattern="(a|aa)+", seconds=0.01)

    @pytest.mark.parametrize(
        ("options", "fault"),
        [
            ({"form": "pattern", "pattern": "("}, r"format\.pattern: is no regular expression"),
            ({"form": "pattern"}, "form is pattern and pattern is ''"),
            ({"pattern": "a"}, "form is think_answer and pattern is 'a'"),
        ],
    )
    def test_faults_of_a_pattern_are_found_in_the_run_file(self, options: dict[str, str], fault: str) -> None:
        with pytest.raises(Problem, match=fault):
            build("reward", {"format": options})


class TestLength:
    def test_is_the_soft_overlong_punishment_of_dapo(self) -> None:
        longest, cache = 100, 20

        def published(length: int) -> float:
            if length <= longest - cache:
                return 0.0
            return ((longest - cache) - length) / cache if length <= longest else -1.0

        lengths = [0, 1, 79, 80, 81, 90, 99, 100, 101, 500]
        assert [judged(n, longest - cache, cache) for n in lengths] == pytest.approx([published(n) for n in lengths])

    def test_about_so_many_falls_on_both_sides(self) -> None:
        found = [judged(n, 50, 10, side="about") for n in (30, 40, 45, 50, 55, 60, 70)]
        assert found == pytest.approx([-1, -1, -0.5, 0, -0.5, -1, -1])

    def test_an_answer_that_was_cut_costs_beside(self) -> None:
        assert [judged(30, 50, 10, cut=0.5, ended=ended) for ended in ("stop", "length")] == [0.0, -0.5]


def judged(length: int, tokens: int, slack: int, ended: str = "stop", **options: Any) -> float:
    found = build("reward", {"length": {"tokens": tokens, "slack": slack, **options}})
    assert isinstance(found, Reward)
    return found.open()([Asked(PROMPT, "", "", length, ended)])[0]


class TestPython:
    def mine(self, folder: Path, text: str, **options: str) -> Reward:
        (folder / "mine.py").write_text(text)
        found = build("reward", {"python": {"path": str(folder / "mine.py"), **options}})
        assert isinstance(found, Reward)
        return found

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (
                "def reward(prompt, answer, key):\n    return prompt == 'How many?' and answer == 'a' and key == 'k'",
                1.0,
            ),
            ("def reward(answer, key=None):\n    return len(answer + key)", 2.0),
            ("def reward(*, tokens, ended):\n    return tokens if ended == 'length' else -1", 7.0),
            ("def reward(messages):\n    return [m['role'] for m in messages] == ['system', 'user']", 1.0),
            ("def reward(**all):\n    return len(all)", 6.0),
        ],
    )
    def test_a_function_gets_what_it_names(self, tmp_path: Path, text: str, expected: float) -> None:
        assert self.mine(tmp_path, text).open()([Asked(PROMPT, "a", "k", 7, "length")]) == [expected]

    def test_the_function_may_have_another_name(self, tmp_path: Path) -> None:
        assert self.mine(tmp_path, "def other(answer):\n    return 2", function="other").open()(
            [Asked(PROMPT, "a")]
        ) == [2]

    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            ("x = (\n", r"mine\.py:1: cannot be loaded \(SyntaxError"),
            ("def rewards(a):\n    return 1", "has no function 'reward'. Did you mean 'rewards'"),
            (
                "def reward(answer):\n    return 1 / len(answer)",
                r"mine\.py:2: reward failed on answer 2 \(ZeroDivision",
            ),
            ("def reward(answer, other):\n    return 1", r"reward failed on answer 1 \(TypeError"),
            ("def reward(answer):\n    return None", "gave None for answer 1, and a reward is a finite number"),
            ("def reward(answer):\n    return float('nan')", "gave nan for answer 1"),
            ("def reward(answer):\n    return '1'", "gave '1' for answer 1"),
        ],
    )
    def test_faults_name_the_file_and_the_answer(self, tmp_path: Path, text: str, fault: str) -> None:
        with pytest.raises(Problem, match=fault):
            self.mine(tmp_path, text).open()([Asked(PROMPT, "a"), Asked(PROMPT, "")])

    def test_a_file_that_is_not_there_is_found_when_it_is_opened(self, tmp_path: Path) -> None:
        found = build("reward", {"python": {"path": str(tmp_path / "none.py")}})
        assert isinstance(found, Reward)
        with pytest.raises(Problem, match=r"there is no such file\. Check the path of the reward"):
            found.open()
