"""Labels of a run's rows: found whole, in order; too many and too few are refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import made_codecs
import numpy as np
import pytest

from tunesmith.core.problem import Problem
from tunesmith.core.records import Labelled, Rated, Tagged
from tunesmith.core.rows import Piece, TokenRow
from tunesmith.core.run import DataSpec
from tunesmith.data.build import Part, build_store
from tunesmith.data.encode import Rules
from tunesmith.data.labels import find_labels, in_order
from tunesmith.data.sources import open_source
from tunesmith.data.store import TokenStore, block_of


def write(file: Path, *rows: object) -> DataSpec:
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return DataSpec(path=str(file))


def labelled(folder: Path, *labels: object) -> DataSpec:
    key = "labels" if isinstance(labels[0], list) else "label"
    return write(folder / "rows.jsonl", *({"text": f"t{number}", key: label} for number, label in enumerate(labels)))


def refused(spec: DataSpec, **options: bool) -> str:
    with pytest.raises(Problem) as caught:
        find_labels([spec], Path(), **options)
    return str(caught.value)


def test_labels_come_by_name_with_their_counts(tmp_path: Path) -> None:
    found = find_labels([labelled(tmp_path, "good", "bad", "good", None, "so-so", "")], Path())
    assert list(found.items()) == [("bad", 1), ("good", 2), ("so-so", 1)]


def test_labels_that_are_numbers_come_by_value(tmp_path: Path) -> None:
    assert list(find_labels([labelled(tmp_path, 10, 9, "-1", 2.5, 10)], Path())) == ["-1", "2.5", "9", "10"]
    assert in_order(["10", "9", "x"]) == ["10", "9", "x"]
    assert in_order(["1.0", "1", "01"]) == ["01", "1", "1.0"]
    assert in_order(["10", "9", "nan"]) == ["10", "9", "nan"]


def test_labels_of_several_sources_are_one_set(tmp_path: Path) -> None:
    one, other = (
        write(tmp_path / "a.jsonl", {"text": "t", "label": "b"}),
        write(tmp_path / "b.jsonl", {"text": "t", "label": "a"}),
    )
    assert find_labels([one, other], Path()) == {"a": 1, "b": 1}
    assert find_labels([DataSpec(path="a.jsonl"), other], tmp_path) == {"a": 1, "b": 1}


def test_a_text_of_several_labels_counts_only_where_several_are_learned(tmp_path: Path) -> None:
    spec = labelled(tmp_path, ["b", "a"], [], ["a"], ["c"])
    assert find_labels([spec], Path(), several=True) == {"a": 2, "b": 1, "c": 1}
    assert find_labels([spec], Path()) == {"a": 1, "c": 1}


def test_tags_are_found_whole(tmp_path: Path) -> None:
    (tmp_path / "rows.conll").write_text("EU B-ORG\nof O\n\nPeter B-PER\nPan I-PER\n")
    found = find_labels([DataSpec(path=str(tmp_path / "rows.conll"))], Path(), Tagged)
    assert found == {"B-ORG": 1, "B-PER": 1, "I-PER": 1, "O": 1}


def test_answers_of_chats_can_be_labels(tmp_path: Path) -> None:
    rows = [{"instruction": f"q{n}", "output": answer} for n, answer in enumerate(["no", "yes", "no"])]
    assert find_labels([write(tmp_path / "rows.jsonl", *rows)], Path()) == {"no": 2, "yes": 1}


def test_numbers_taken_for_labels_are_refused_with_the_way_out(tmp_path: Path) -> None:
    spec = labelled(tmp_path, *(number / 7 for number in range(1, 1101)))
    assert "more than 1,000 different labels" in refused(spec)
    assert "objective regress" in refused(spec)
    texts = labelled(tmp_path, *(f"text {number}" for number in range(1101)))
    assert "`columns`" in refused(texts)
    many = labelled(tmp_path, *([f"text {number}"] for number in range(1101)))
    assert len(find_labels([many], Path(), several=True)) == 1101


def test_too_few_labels_are_refused(tmp_path: Path) -> None:
    assert "all rows have the label 'a'" in refused(labelled(tmp_path, "a", "a"))
    assert "no row has a label" in refused(labelled(tmp_path, [], []), several=True)
    assert "objective takes Labelled records" in refused(write(tmp_path / "rows.jsonl", {"text": "t"}))


def test_the_first_value_of_a_row_is_found_in_any_view() -> None:
    piece = Piece(np.arange(3, dtype=np.int32), np.ones(3, np.float32))
    rows = [TokenRow(piece, values=(3.0, 4.0)), TokenRow(piece), TokenRow(piece, values=(5.0,)), TokenRow(piece)]
    block = block_of([(row, Labelled("", ()).place, 0, 1) for row in rows])
    store = TokenStore(block.tables, block.files)
    assert np.array_equal(store.first_values, np.array([3, np.nan, 5, np.nan], np.float32), equal_nan=True)
    assert store.view(np.array([2, 0])).first_values.tolist() == [5.0, 3.0]


def built(spec: DataSpec, rules: Rules, cache: Path) -> tuple[TokenStore, Counter[str], list[str]]:
    parts = [Part(source, 0) for source in open_source(spec)]
    store, report = build_store(parts, made_codecs.codec(), rules, cache)
    report.check()
    (own,) = report.sources
    return store, own.rejected, own.notes


def test_unknown_and_missing_labels_are_rows_of_the_report(tmp_path: Path) -> None:
    spec = labelled(tmp_path, "good", "bad", "odd", None, "")
    store, rejected, _ = built(spec, Rules(Labelled, labels=("bad", "good")), tmp_path / "cache")
    assert store.first_values.tolist() == [1.0, 0.0]
    assert rejected == {"unknown label": 1, "missing label": 2}


def test_labels_that_are_no_numbers_are_rows_of_the_report(tmp_path: Path) -> None:
    store, rejected, _ = built(
        labelled(tmp_path, "2.5", 3, "many", "inf"), Rules(Labelled, number=True), tmp_path / "c"
    )
    assert store.first_values.tolist() == [2.5, 3.0]
    assert rejected == {"label is no number": 2}


def test_several_labels_are_a_zero_or_one_for_each(tmp_path: Path) -> None:
    rules = Rules(Labelled, labels=("a", "b", "c"), several=True)
    store, rejected, _ = built(labelled(tmp_path, ["c", "a"], [], ["b", "x"]), rules, tmp_path / "cache")
    assert [store.row(number).values for number in range(len(store))] == [(1.0, 0.0, 1.0), (0.0, 0.0, 0.0)]
    assert rejected == {"unknown label": 1}
    _, rejected, _ = built(
        labelled(tmp_path, ["c", "a"], [], ["b"]), Rules(Labelled, labels=("a", "b", "c")), tmp_path / "d"
    )
    assert rejected == {"several labels": 1, "missing label": 1}


def test_a_preference_is_two_ratings_or_one_rejected_row(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "yes", "rejected": "no"}, {"prompt": "q", "chosen": "ja " * 40, "rejected": "no"}]
    store, rejected, notes = built(
        write(tmp_path / "rows.jsonl", *rows), Rules(Rated, max_tokens=40), tmp_path / "cache"
    )
    assert store.first_values.tolist() == [1.0, 0.0]
    assert len(set(store.keys.tolist())) == 1
    assert rejected == {"too long": 1}
    assert any("two rated answers" in note for note in notes)
