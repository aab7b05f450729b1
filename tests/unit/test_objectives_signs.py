"""Signs of trouble: each is provoked, told once when it sets in, and not told where there is none."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.objectives._signs import FIRST_ROUNDS, NAMES, Watch, signs

FINE: dict[str, float] = {
    "reward": 0.5,
    "reward_std": 0.3,
    "reward_exact": 0.5,
    "reward_format": 0.9,
    "length": 100.0,
    "cut": 0.1,
    "empty": 0.0,
    "equal": 0.4,
    "distinct": 0.9,
    "entropy": 1.5,
    "kl": 0.01,
}
WATCH = Watch(8, {"exact": 1.0, "format": 0.5})
TROUBLE: dict[str, tuple[dict[str, float], str]] = {
    "nothing": ({"reward": 0.0, "reward_std": 0.0, "equal": 1.0}, "every answer is worth 0"),
    "equal": ({"equal": 0.95}, "95% of the groups"),
    "empty": ({"empty": 0.2}, "20% of the answers are empty"),
    "cut": ({"cut": 0.75}, "75% of the answers are cut by sampling.max_tokens"),
    "few": ({"distinct": 0.25}, "of 8 answers to a prompt only 2.0 differ"),
    "sure": ({"entropy": 0.01}, "entropy is down to 0.010 nats"),
    "length": ({"reward": 0.6, "length": 250.0}, "from 100 to 250 tokens"),
    "noise": ({"reward": 0.6, "entropy": 2.2}, "answers become noise (1.5 to 2.2 nats a token)"),
    "kl": ({"reward": 0.6, "kl": 0.8}, "0.80 nats a token"),
    "parts": ({"reward_exact": 0.9, "reward_format": 0.5}, "exact becomes better while format becomes worse"),
}


def told(rounds: list[dict[str, float]], watch: Watch = WATCH) -> list[tuple[int, str]]:
    """What is told in each round, by its number."""
    carried: dict[str, float] = {}
    return [(number, text) for number, one in enumerate(rounds) for text in signs({**FINE, **one}, carried, watch)]


def test_every_sign_is_provoked() -> None:
    assert set(TROUBLE) == set(NAMES)


def test_a_run_without_trouble_is_told_nothing() -> None:
    assert told([{}] * 20) == []


@pytest.mark.parametrize("name", TROUBLE)
def test_each_is_told_once_when_it_has_set_in(name: str) -> None:
    change, words = TROUBLE[name]
    found = told([{}] * FIRST_ROUNDS + [change] * 12)
    assert [number for number, _ in found] == [FIRST_ROUNDS + 2]
    assert words in found[0][1]


@pytest.mark.parametrize("name", TROUBLE)
def test_one_round_alone_is_no_sign(name: str) -> None:
    change, _ = TROUBLE[name]
    assert told([{}] * 4 + ([change] + [{}] * 5) * 3) == []


def test_it_is_told_again_after_it_was_gone() -> None:
    change, _ = TROUBLE["empty"]
    found = told([{}] * 4 + [change] * 4 + [{}] * 10 + [change] * 4)
    assert [number for number, _ in found] == [6, 20]


def test_what_moves_with_a_falling_reward_is_not_taken_for_gaming() -> None:
    assert told([{}] * 4 + [{"reward": 0.4, "length": 250.0, "kl": 0.8, "entropy": 2.2}] * 6) == []


def test_a_penalty_that_falls_is_for_the_better() -> None:
    watch = Watch(8, {"exact": 1.0, "format": -0.5})
    assert told([{}] * 4 + [{"reward_exact": 0.9, "reward_format": 0.5}] * 6, watch) == []
    assert told([{}] * 4 + [{"reward_exact": 0.2, "reward_format": 0.5}] * 6, watch)


def test_levels_are_plain_numbers_that_a_checkpoint_holds() -> None:
    carried: dict[str, float] = {}
    change: dict[str, Any] = TROUBLE["cut"][0]
    for _ in range(2):
        assert signs({**FINE, **change}, carried, WATCH) == ()
    again = dict(carried)
    assert signs({**FINE, **change}, carried, WATCH) == signs({**FINE, **change}, again, WATCH) != ()
    assert all(isinstance(value, float) for value in carried.values())
    assert carried == again
