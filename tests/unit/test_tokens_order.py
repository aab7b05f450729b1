"""Order, split and packing: what they promise for one input at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.core.problem import Problem
from tunesmith.data.order import mixed, permutation
from tunesmith.data.pack import account, pack, shares
from tunesmith.data.split import FEWEST, sample, split, without_shared
from tunesmith.data.stream import Pace, Stream


def test_mixing_is_splitmix64() -> None:
    """The reference sequence of SplitMix64 from state 1234567, as published with the generator."""
    gamma = 0x9E3779B97F4A7C15
    states = [(1234567 + turn * gamma) % 2**64 for turn in range(3)]
    assert mixed(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_orders_differ_by_every_seed_and_are_fair() -> None:
    orders = {tuple(permutation(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    firsts = np.bincount([int(permutation(10, seed)[0]) for seed in range(4000)], minlength=10)
    assert ((firsts - 400) ** 2 / 400).sum() < 27.9  # chi-squared, 9 degrees of freedom, p = 0.001


def stream(count: int, **options: object) -> Stream:
    lengths = np.arange(1, count + 1)
    return Stream(lengths, Pace(rows=4), **options)  # type: ignore[arg-type]


def test_rows_per_step_are_exact_and_the_last_step_takes_the_rest() -> None:
    own = stream(10, order="given")
    assert [own.rows_of_step(step) for step in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert own.steps_per_epoch == 3
    assert own.rows_of_step(3) == [0, 1, 2, 3]
    assert own.epoch_of(4) == (1, 1)


def test_tokens_per_step_are_reached_with_whole_rows() -> None:
    lengths = np.array([3, 3, 3, 20, 1, 1, 1])
    own = Stream(lengths, Pace(tokens=6), order="given")
    assert [own.rows_of_step(step) for step in range(4)] == [[0, 1], [2, 3], [4, 5, 6], [0, 1]]


def test_total_steps() -> None:
    own = stream(10)
    assert own.total_steps(1) == 3
    assert own.total_steps(2.5) == 8
    assert own.total_steps(0.1) == 1
    assert own.total_steps(1, steps=77) == 77


def test_weights_decide_how_often_a_source_is_seen() -> None:
    sources = np.repeat([0, 1, 2], [10, 9, 8])
    own = Stream(np.ones(27, int), Pace(rows=1), sources=sources, weights=[2, 0.5, 1], seed=3)
    epochs = [np.bincount(own.epoch(number), minlength=27) for number in range(4)]
    for seen in epochs:
        assert seen[:10].tolist() == [2] * 10
        assert seen[10:19].max() == 1
        assert seen[10:19].sum() in (4, 5)
        assert seen[19:].tolist() == [1] * 8
    assert sum(seen[10:19] for seen in epochs).tolist() == [2] * 9
    other = Stream(np.ones(27, int), Pace(rows=1), sources=sources, weights=[2, 0.5, 1], seed=4)
    assert np.bincount(other.epoch(0), minlength=27).tolist() != epochs[0].tolist()


def test_no_rows_are_a_problem() -> None:
    with pytest.raises(Problem, match="no rows"):
        stream(0)
    with pytest.raises(Problem, match="no rows"):
        Stream(np.ones(1, int), Pace(), weights=[0.1])


def test_a_share_sets_rows_aside_and_at_least_one() -> None:
    keys = mixed(np.arange(1000))
    for count, fraction, most, wanted in [
        (1000, 0.05, 500, 50),
        (1000, 0.5, 100, 100),
        (FEWEST, 0.01, 500, 1),
        (FEWEST - 1, 0.01, 500, 0),
        (1000, 0.0, 500, 0),
        (0, 0.05, 500, 0),
    ]:
        learned, measured = split(keys[:count], fraction, most)
        assert len(measured) == wanted
        assert sorted([*learned, *measured]) == list(range(count))


def test_a_row_keeps_its_side_wherever_it_stands() -> None:
    keys = mixed(np.arange(400))
    _, measured = split(keys, 0.1, 500)
    shuffled = permutation(400, 9)
    _, again = split(keys[shuffled], 0.1, 500)
    assert set(keys[measured].tolist()) == set(keys[shuffled][again].tolist())


def test_a_million_equal_rows_are_learned_from() -> None:
    learned, measured = split(np.zeros(10**6, np.uint64), 0.05, 500)
    assert (len(learned), len(measured)) == (10**6, 0)


def test_shared_rows_and_samples() -> None:
    keys = np.array([5, 6, 7, 6], np.uint64)
    assert without_shared(keys, np.array([6, 9], np.uint64)).tolist() == [0, 2]
    chosen = sample(mixed(np.arange(100)), 10)
    assert len(chosen) == 10
    assert chosen.tolist() == sorted(chosen.tolist())


def test_packs_of_a_known_case() -> None:
    lengths = [5, 9, 2, 4, 6, 3, 12]
    packs = pack(lengths, 10)
    assert sorted(sum(lengths[at] for at in part) for part in packs) == [9, 10, 10, 12]
    about = account(packs, lengths, 10)
    assert (about.rows, about.tokens, about.packs) == (7, 41, 4)
    assert pack([], 10) == []
    assert account([], [], 10).fill == 1.0


@given(st.lists(st.integers(1, 100), min_size=60, max_size=200))
def test_packs_are_next_to_full(lengths: list[int]) -> None:
    packs = pack(lengths, 1000)
    fewest = -(-sum(lengths) // 1000)
    assert len(packs) <= fewest + 1


def test_packs_are_even_where_there_is_room() -> None:
    def tokens(lengths: list[int]) -> list[int]:
        return sorted(sum(lengths[at] for at in part) for part in pack(lengths, 20))

    assert tokens([4] * 6) == [12, 12]
    assert tokens([7, 6, 5, 2, 8, 9, 3]) == [20, 20]
    assert tokens([30, 4, 4, 4, 4, 4, 4]) == [12, 12, 30]
    assert tokens([30, 30, 3, 3]) == [6, 30, 30]


def test_shares_are_even() -> None:
    lengths = [10, 9, 8, 7, 6, 5, 4]
    dealt = shares([[at] for at in range(7)], lengths, 2)
    tokens = [sum(lengths[at] for part in rank for at in part) for rank in dealt]
    assert [len(rank) for rank in dealt] == [4, 4]
    assert max(tokens) - min(tokens) <= 4
