"""Rows that are too long, plain text, and what stands on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from made_codecs import chat, codec

from tunesmith.core.problem import Problem
from tunesmith.core.records import Chat, Place, Preference, Text
from tunesmith.core.rows import Piece, TokenRow
from tunesmith.core.run import TrainSpec
from tunesmith.data.encode import SPLIT, TRUNCATED, Rules, encode, write
from tunesmith.data.report import Rejected
from tunesmith.data.store import TABLES, StoreWriter, block_of, content_key, open_store
from tunesmith.data.template import TemplateRefusal

LONG = Chat(chat("q" * 20, "a" * 20), place=Place("f.jsonl", 7))


def test_text_ends_with_the_end_of_text_and_all_but_its_first_token_is_learned() -> None:
    own = codec()
    rows = encode(Text("hello the <|im_end|>"), own, Rules(Text))
    assert isinstance(rows, list)
    assert rows[0].trunk.tokens.tolist() == [*own.encode_text("hello the <|im_end|>"), own.eos]
    assert rows[0].trunk.weights.tolist() == [0.0] + [1.0] * (len(rows[0]) - 1)
    empty = encode(Text(""), own, Rules(Text))
    assert isinstance(empty, Rejected)
    assert empty.reason == "empty"


@given(st.integers(2, 9), st.integers(1, 60))
def test_windows_learn_every_token_once(size: int, length: int) -> None:
    counts: list[str] = []
    own = codec()
    rows = encode(Text("x" * length), own, Rules(Text, size, "split"), counts.append)
    assert isinstance(rows, list)
    assert all(len(row) <= size for row in rows)
    learned = [token for row in rows for token in row.trunk.tokens[row.trunk.weights > 0].tolist()]
    assert learned == [*own.encode_text("x" * length), own.eos][1:]
    assert counts == ([SPLIT] if length + 1 > size else [])


def test_long_rows_are_refused_dropped_or_cut_as_the_rules_say() -> None:
    own, counts = codec(), list[str]()
    with pytest.raises(Problem, match=r"f\.jsonl:7: has \d+ tokens, and train.max_tokens is 45"):
        encode(LONG, own, Rules(Chat, 45, "refuse"))
    dropped = encode(LONG, own, Rules(Chat, 45, "drop"))
    assert isinstance(dropped, Rejected)
    assert dropped.reason == "too long"
    cut = encode(LONG, own, Rules(Chat, 45, "truncate"), counts.append)
    assert isinstance(cut, list)
    assert len(cut[0]) == 45
    assert counts == [TRUNCATED]
    empty = encode(LONG, own, Rules(Chat, 30, "truncate"))
    assert isinstance(empty, Rejected)
    assert "nothing to learn" in empty.message
    with pytest.raises(Problem, match="split"):
        Rules(Chat, 30, "split")


@pytest.mark.parametrize("learn", ["answers", "last", "all"])
def test_a_chat_that_is_written_ahead_becomes_the_same_row(learn: Literal["answers", "last", "all"]) -> None:
    own, rules = codec(), Rules(Chat, 64, learn=learn)
    for record in (LONG, Chat(chat("hello", "the <|im_end|>", "and", "so")), Chat(chat("a", "b"))):
        alone, ahead = encode(record, own, rules), encode(record, own, rules, written=write(record, own, rules))
        assert isinstance(alone, list)
        assert isinstance(ahead, list)
        assert [row.trunk.tokens.tolist() for row in ahead] == [row.trunk.tokens.tolist() for row in alone]
        assert [row.trunk.weights.tolist() for row in ahead] == [row.trunk.weights.tolist() for row in alone]


def test_what_is_wrong_with_a_chat_written_ahead_is_said_when_it_is_encoded() -> None:
    own, rules = codec(), Rules(Chat)
    record = Chat(chat("a", "holds \ufdd0"), place=Place("f.jsonl", 3))
    written = write(record, own, rules)
    assert isinstance(written, TemplateRefusal)
    assert encode(record, own, rules, written=written) == encode(record, own, rules)
    assert isinstance(encode(record, own, rules), Rejected)
    assert write(Text("plain"), own, Rules(Text)) is None


def test_by_itself_plain_text_is_split_and_all_else_dropped() -> None:
    own, text = codec(), Text("the " * 40)
    for open_, named in (
        (Rules(Text, 16, "auto"), Rules(Text, 16, "split")),
        (Rules(Chat, 45, "auto"), Rules(Chat, 45, "drop")),
    ):
        assert open_ == named
        assert open_.plain() == named.plain()
    windows = encode(text, own, Rules(Text, 16, "auto"))
    assert isinstance(windows, list)
    assert len(windows) > 1
    assert TrainSpec().over_long == "auto"


def test_a_cut_pair_keeps_both_answers_or_is_not_used() -> None:
    own = codec()
    pair = Preference(chat("q"), chat("", "a" * 30)[1:], chat("", "b")[1:])
    rows = encode(pair, own, Rules(Preference, 30, "truncate"))
    assert isinstance(rows, list)
    assert rows[0].depth == 30
    assert all(branch.weights.any() for branch in rows[0].branches)
    assert isinstance(encode(pair, own, Rules(Preference, 12, "truncate")), Rejected)


pieces = st.integers(1, 12).flatmap(
    lambda size: st.builds(
        Piece,
        arrays.arrays(np.int32, size, elements=st.integers(0, 2**31 - 1)),
        arrays.arrays(np.float32, size, elements=st.sampled_from([0.0, 1.0, 0.5, 3.25])),
    )
)


@st.composite
def token_rows(draw: st.DrawFn) -> TokenRow:
    """Rows of every shape: with a trunk or texts of their own, values of any width or marks, with a note or without."""
    branches = tuple(draw(st.lists(pieces, max_size=3)))
    nothing = Piece(np.zeros(0, np.int32), np.zeros(0, np.float32))
    trunk = draw(pieces) if draw(st.booleans()) or not branches else nothing
    marks = draw(st.lists(st.integers(0, len(trunk) - 1), max_size=4)) if len(trunk) else []
    width = draw(st.integers(0, 1 if marks else 3))
    values = tuple(float(n) for n in range(width * (len(marks) or max(1, len(branches)))))
    note = draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=9))
    return TokenRow(trunk, branches, values=values, marks=tuple(sorted(marks)), note=note)


def same(left: TokenRow, right: TokenRow) -> bool:
    ours, theirs = (row.trunk, *row.branches) if (row := left) else (), (right.trunk, *right.branches)
    equal = [
        np.array_equal(one.tokens, other.tokens) and np.array_equal(one.weights, other.weights)
        for one, other in zip(ours, theirs, strict=True)
    ]
    rest = [(row.values, row.marks, row.note) for row in (left, right)]
    return all(equal) and rest[0] == rest[1]


@settings(max_examples=30)
@given(st.lists(st.lists(token_rows(), max_size=4), max_size=4))
def test_a_store_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[list[TokenRow]]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    writer = StoreWriter(folder)
    rows: list[TokenRow] = []
    places: list[Place] = []
    for number, block in enumerate(blocks):
        own = [Place(f"{(number + n) % 3}.jsonl", n, 5 * n) for n in range(len(block))]
        writer.add(block_of([(row, place, number, 7) for row, place in zip(block, own, strict=True)]))
        rows, places = rows + block, places + own
    writer.finish("print")
    store = open_store(folder, "print")
    assert store is not None
    assert len(store) == len(rows)
    assert all(same(store.row(n), row) for n, row in enumerate(rows))
    assert [store.place(n) for n in range(len(rows))] == places
    assert store.lengths.tolist() == [len(row) for row in rows]
    assert store.depths.tolist() == [row.depth for row in rows]
    assert store.learned.tolist() == [row.learned for row in rows]
    view = store.view(np.arange(len(rows))[::-1])
    assert all(same(view.row(n), row) and view.row(n).index == n for n, row in enumerate(reversed(rows)))


def small_store(folder: Path) -> None:
    folder.mkdir()
    writer = StoreWriter(folder)
    piece = Piece(np.arange(9, dtype=np.int32), np.ones(9, np.float32))
    writer.add(block_of([(TokenRow(piece, (piece,), values=(1.0,), marks=(2,), note="n"), Place("f", 1), 0, 1)]))
    writer.finish("print")


@pytest.mark.parametrize("name", [*TABLES, "places.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_a_damaged_store_is_no_store(tmp_path: Path, name: str, damage: str) -> None:
    small_store(tmp_path / "s")
    file = tmp_path / "s" / name
    raw = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(raw[:-1] if name != "manifest.json" else raw[:-9])
    else:
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
    assert open_store(tmp_path / "s", "print") is None


def test_a_store_of_something_else_is_no_store(tmp_path: Path) -> None:
    small_store(tmp_path / "s")
    assert open_store(tmp_path / "s", "print") is not None
    assert open_store(tmp_path / "s", "other") is None
    assert open_store(tmp_path / "none", "print") is None


def test_equal_contents_have_equal_keys_whatever_is_learned() -> None:
    tokens = np.arange(5, dtype=np.int32)
    one, other = (TokenRow(Piece(tokens, np.full(5, weight, np.float32))) for weight in (0.0, 1.0))
    assert content_key([one]) == content_key([other])
    split = TokenRow(Piece(tokens[:2], one.trunk.weights[:2]), (Piece(tokens[2:], one.trunk.weights[2:]),))
    assert content_key([one]) != content_key([split])


def test_marks_and_notes_are_part_of_what_a_row_says() -> None:
    piece = Piece(np.arange(5, dtype=np.int32), np.zeros(5, np.float32))
    rows = [
        TokenRow(piece),
        TokenRow(piece, marks=(1, 2)),
        TokenRow(piece, marks=(1, 3)),
        TokenRow(piece, note="a"),
        TokenRow(piece, note="b"),
    ]
    assert len({content_key([row]) for row in rows}) == len(rows)


def test_a_row_refuses_what_belongs_to_nothing() -> None:
    nothing, piece = (Piece(np.zeros(n, np.int32), np.zeros(n, np.float32)) for n in (0, 4))
    assert TokenRow(nothing, (piece, piece), values=(1.0,) * 6).width == 3
    assert TokenRow(piece, marks=(0, 3), values=(1.0, 2.0)).width == 1
    with pytest.raises(ValueError, match="at least one token"):
        TokenRow(nothing)
    with pytest.raises(ValueError, match="at least one token"):
        TokenRow(nothing, (piece, nothing))
    with pytest.raises(ValueError, match="3 values for 2 answers"):
        TokenRow(piece, (piece, piece), values=(1.0,) * 3)
    with pytest.raises(ValueError, match="4 values for 2 marks"):
        TokenRow(piece, values=(1.0,) * 4, marks=(0, 1))
    with pytest.raises(ValueError, match="4 tokens"):
        TokenRow(piece, marks=(4,))


def test_the_first_token_of_a_text_of_its_own_is_never_learned() -> None:
    nothing, piece = (Piece(np.zeros(n, np.int32), np.ones(n, np.float32)) for n in (0, 4))
    assert TokenRow(nothing, (piece, piece)).learned == 6
    assert TokenRow(piece, (piece,)).learned == 7
