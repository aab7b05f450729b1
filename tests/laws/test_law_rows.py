"""The laws of rows: none is lost, none is seen twice, and order follows from (seed, epoch, index) alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_codecs import codec

from tunesmith.core.records import Chat
from tunesmith.core.run import DataSpec
from tunesmith.data.build import Part, build_store
from tunesmith.data.encode import Rules
from tunesmith.data.pack import account, pack, shares
from tunesmith.data.sources import open_source
from tunesmith.data.split import split, without_shared
from tunesmith.data.stream import Pace, Stream

lengths_of_rows = st.lists(st.integers(1, 300), min_size=1, max_size=80)
paces = st.one_of(st.builds(Pace, tokens=st.integers(1, 900)), st.builds(Pace, rows=st.integers(1, 20)))

ROWS = st.sampled_from(
    [
        '{"instruction": "q", "output": "a"}',
        '{"instruction": "q <|im_end|>", "output": "</s> a"}',
        '{"system": "s", "instruction": "q", "output": "a"}',
        '{"instruction": "long", "output": "' + "a" * 90 + '"}',
        '{"instruction": "q", "output": 7}',
        '{"instruction": "q", "output": ""}',
        '{"instruction": "q\\ufdd3", "output": "a"}',
        '{"instruction": "\\ud800", "output": "a"}',
        "{broken",
    ]
)


@settings(max_examples=25)
@given(st.lists(ROWS, min_size=1, max_size=30), st.sampled_from(["chatml", "gemma"]))
def test_rows_in_are_rows_used_and_rows_listed(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str], style: str
) -> None:
    folder = tmp_path_factory.mktemp("law")
    usable = '{"instruction": "ok", "output": "yes"}'
    (folder / "rows.jsonl").write_text("\n".join([*rows, usable]) + "\n", "utf-8")
    parts = [Part(source, 0) for source in open_source(DataSpec(path=str(folder / "rows.jsonl")))]
    store, report = build_store(parts, codec(style), Rules(Chat, 90), folder / "cache")
    (source,) = report.sources
    assert source.rows_in == len(rows) + 1
    assert source.rows_in == source.used + source.lost
    assert len(store) == source.used
    assert report.rejects is not None
    listed = [json.loads(line) for line in report.rejects.read_text("utf-8").splitlines()]
    used = [store.place(number).line for number in range(len(store))]
    assert sorted([*used, *(row["line"] for row in listed)]) == list(range(1, len(rows) + 2))
    assert all(row["reason"] and row["message"] for row in listed)


@given(lengths_of_rows, paces, st.integers(0, 2**63), st.sampled_from(["shuffled", "given"]))
def test_an_epoch_sees_every_row_once(lengths: list[int], pace: Pace, seed: int, order: str) -> None:
    stream = Stream(np.array(lengths), pace, seed=seed, order=order)  # type: ignore[arg-type]
    start = 0
    for epoch in range(2):
        steps = range(start, start + stream.steps_of(epoch))
        rows = [row for step in steps for row in stream.rows_of_step(step)]
        assert sorted(rows) == list(range(len(lengths)))
        start += stream.steps_of(epoch)


@given(lengths_of_rows, paces, st.integers(0, 99))
def test_a_resumed_run_reads_what_an_uninterrupted_one_reads(lengths: list[int], pace: Pace, seed: int) -> None:
    """Any step can be asked for first, and in any order."""
    one = Stream(np.array(lengths), pace, seed=seed)
    steps = list(range(one.total_steps(3)))
    whole = [one.rows_of_step(step) for step in steps]
    for step in reversed(steps):
        fresh = Stream(np.array(lengths), pace, seed=seed)
        assert fresh.rows_of_step(step) == whole[step]
        if step < len(steps) - 3:
            break


@given(lengths_of_rows, st.integers(1, 700), st.integers(1, 8))
def test_packing_loses_nothing_and_any_world_sees_the_same_rows(lengths: list[int], budget: int, world: int) -> None:
    packs = pack(lengths, budget)
    assert sorted(at for part in packs for at in part) == list(range(len(lengths)))
    for part in packs:
        assert len(part) == 1 or sum(lengths[at] for at in part) <= budget
    dealt = shares(packs, [sum(lengths[at] for at in part) for part in packs], world)
    assert len(dealt) == world
    assert len({len(rank) for rank in dealt}) == 1
    assert sorted(part for rank in dealt for part in rank if part) == sorted(packs)
    assert account(packs, lengths, budget).tokens == sum(lengths)
    assert pack(lengths, budget) == packs


@given(st.lists(st.integers(0, 40), max_size=200), st.floats(0, 0.9), st.integers(1, 60))
def test_no_content_stands_on_both_sides(contents: list[int], fraction: float, most: int) -> None:
    keys = np.array(contents, np.uint64)
    learned, measured = split(keys, fraction, most)
    assert sorted([*learned.tolist(), *measured.tolist()]) == list(range(len(contents)))
    assert not set(keys[learned].tolist()) & set(keys[measured].tolist())
    assert len(measured) <= most
    kept = without_shared(keys, keys[measured])
    assert kept.tolist() == learned.tolist()


def test_real_rows_are_all_used_and_learn_their_answers_alone(shared_data: Path, tmp_path: Path) -> None:
    from tunesmith.data.tokenizer import Codec

    own = Codec.load(shared_data / "tokenizer" / "minimind")
    file = shared_data / "sft" / "rasbt_instructions_1100.json"
    parts = [Part(source, 0) for source in open_source(DataSpec(path=str(file)))]
    store, report = build_store(parts, own, Rules(Chat), tmp_path)
    assert report.sources[0].used == len(store) == 1100
    rows = json.loads(file.read_text("utf-8"))
    for number in range(0, 1100, 7):
        piece = store.row(number).trunk
        learned = own.decode(piece.tokens[piece.weights > 0].tolist(), special=True)
        assert learned == rows[number]["output"].lstrip("\n") + "<|im_end|>"
