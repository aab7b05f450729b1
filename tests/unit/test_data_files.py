"""Reading files: every kind and packing gives the same rows, at the right places, whatever the size of a chunk."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.core.problem import Problem
from tunesmith.data.files import RawRow, describe, json_rows, kind_of, opening, read, table
from tunesmith.data.files.encoding import Encoding, Line, find_encoding, lines
from tunesmith.data.report import Rejected

ROWS: list[dict[str, Any]] = [
    {"text": "plain", "label": "1"},
    {"text": 'quotes " and, commas\tand tabs', "label": "2"},
    {"text": "两行\nof it", "label": "三"},
    {"text": "\U0001f600 {[}]", "label": ""},
]


def values(file: Path, notes: list[str] | None = None) -> list[Any]:
    """The rows of a file; a rejected one as its reason."""
    found = read(describe(file, file.name), (notes if notes is not None else []).append)
    return [dict(item.values) if isinstance(item, RawRow) else item.reason for item in found]


def as_json(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps(rows, ensure_ascii=False, indent=1).encode()


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def as_table(delimiter: str) -> Callable[[list[dict[str, Any]]], bytes]:
    def write(rows: list[dict[str, Any]]) -> bytes:
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue().encode()

    return write


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out, row_group_size=2)
    return out.getvalue()


def zst(content: bytes) -> bytes:
    return pytest.importorskip("zstandard").compress(content)


WRITERS = {"json": as_json, "jsonl": as_jsonl, "csv": as_table(","), "tsv": as_table("\t"), "parquet": as_parquet}
PACKERS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zst}


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_and_packing_gives_the_same_rows(tmp_path: Path, kind: str, packing: str) -> None:
    file = tmp_path / f"rows.{kind}{packing}"
    file.write_bytes(PACKERS[packing](WRITERS[kind](ROWS)))
    assert values(file) == ROWS


@pytest.mark.parametrize("packing", PACKERS)
def test_text_is_one_row(tmp_path: Path, packing: str) -> None:
    file = tmp_path / f"book.TXT{packing}"
    file.write_bytes(PACKERS[packing](codecs.BOM_UTF8 + "Once\r\nupon\ra\ntime 龙".encode()))
    assert values(file) == [{"text": "Once\nupon\na\ntime 龙"}]


def test_gzip_members_and_zstandard_frames_follow_each_other(tmp_path: Path) -> None:
    halves = [as_jsonl(ROWS[:2]) + b"\n", as_jsonl(ROWS[2:])]
    for suffix in (".gz", ".zst"):
        file = tmp_path / f"rows.jsonl{suffix}"
        file.write_bytes(b"".join(map(PACKERS[suffix], halves)))
        assert values(file) == ROWS


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030"])
def test_every_encoding_gives_the_same_rows_at_their_bytes(tmp_path: Path, kind: str, codec: str) -> None:
    rows = [{**row, "text": "这是一个中文句子，" + str(row["text"])} for row in ROWS[:2]] * 3
    text = WRITERS[kind](rows).decode()
    marks = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
    file = tmp_path / f"rows.{kind}"
    file.write_bytes(marks.get(codec, b"") + text.encode(codec))
    data = describe(file, file.name)
    assert data.encoding is not None
    assert data.encoding.guessed is (codec == "gb18030")
    found = list(read(data, [].append))
    assert [item.values for item in found if isinstance(item, RawRow)] == rows
    for item in found:
        at = file.read_bytes()[item.place.offset :].decode(data.encoding.codec)
        assert at.lstrip('"').startswith("这" if kind == "csv" else "{")
        if kind != "csv":
            assert json.JSONDecoder().raw_decode(at)[0] in rows


def test_utf8_with_some_wrong_bytes_stays_utf8(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes('{"text": "这是中文"}\n{"text": "好"}\n'.encode() + b'{"text": "\xff\xfe"}\n')
    assert values(file) == [{"text": "这是中文"}, {"text": "好"}, "bad-encoding"]


def test_latin_1_is_not_taken_for_chinese(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes('{"text": "Müller, café, señor, Übung"}\n{"text": "plain"}\n'.encode("latin-1"))
    assert values(file) == ["bad-encoding", {"text": "plain"}]


def test_the_first_chinese_character_may_stand_late(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"text": "plain"}\n' * 30_000 + '{"text": "你好世界，这是中文"}\n'.encode("gbk"))
    assert find_encoding(file, "") == Encoding("gb18030", guessed=True)
    assert values(file)[-1] == {"text": "你好世界，这是中文"}


def test_utf16_without_a_mark_is_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes('{"text": "plain"}\n'.encode("utf-16-le"))
    with pytest.raises(Problem, match="byte order mark"):
        describe(file, "rows.jsonl")


TEXTS = st.text(st.sampled_from("ab \r\n\u2028\x85é龙\U0001f600"), max_size=30)


@given(st.lists(TEXTS, max_size=8), st.sampled_from(["utf-8", "utf-16-le", "gb18030"]))
def test_lines_agree_with_universal_newlines(pieces: list[str], codec: str) -> None:
    text = "".join(pieces)
    found = list(lines(iter(pieces), Encoding(codec)))
    plain = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    expected = plain[:-1] if plain[-1] == "" else plain
    assert [line.text for line in found] == expected
    assert [line.number for line in found] == list(range(1, len(expected) + 1))
    raw = text.encode(codec)
    for line in found:
        assert raw[line.offset :].decode(codec).startswith(line.text)


def test_a_line_beyond_the_limit_keeps_its_place_only() -> None:
    found = list(lines(iter(["ab\n", "x" * 2**24, "y" * 2**26, "\ncd"]), Encoding()))
    assert [(line.number, line.offset, line.cut) for line in found] == [
        (1, 0, False),
        (2, 3, True),
        (3, 3 + 2**24 + 2**26 + 1, False),
    ]
    assert len(found[1].text) < 2**25
    assert found[2] == Line("cd", 3, found[2].offset, False)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.lists(st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=4), min_size=1, max_size=5)


@given(OBJECTS, st.integers(1, 50), st.sampled_from([None, 1]), st.booleans())
def test_the_scanner_agrees_with_json(rows: list[Any], step: int, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    pieces = (text[at : at + step] for at in range(0, len(text), step))
    scanner = json_rows._Scanner("rows.json", pieces, Encoding())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "CHUNK", 1)
        found = list(scanner.rows("array"))
    sound = [dict(item.values) if isinstance(item, RawRow) else item.reason for item in found]
    assert sound == rows
    raw = text.encode("utf-8", "surrogatepass")
    for item, row in zip(found, rows, strict=True):
        start = raw[item.place.offset :].decode()
        assert json.JSONDecoder().raw_decode(start)[0] == row
        assert raw[: item.place.offset].count(b"\n") + 1 == item.place.line


@given(OBJECTS, st.data())
def test_a_scanner_never_crashes_and_never_hangs(rows: list[Any], data: st.DataObject) -> None:
    text = json.dumps(rows)
    at = data.draw(st.integers(0, len(text) - 1))
    text = (
        text[:at]
        + data.draw(st.sampled_from(['"', "{", "}", "[", "]", ",", ":", "\\", "x", "", "\0"]))
        + text[at + 1 :]
    )
    shape = data.draw(st.sampled_from(["array", "values"]))
    try:
        found = list(json_rows._Scanner("rows.json", iter([text]), Encoding()).rows(shape))
    except Problem as problem:
        assert "rows.json:1" in problem.where
    else:
        assert len(found) <= len(text)


def test_a_broken_row_in_lines_of_its_own_costs_only_itself(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"row {number}"}, indent=1) for number in range(6)]
    rows[2] = rows[2].replace('"row', "row")
    rows[4] = rows[4].replace('": ', '" ')
    file = tmp_path / "rows.json"
    file.write_text("[\n" + ",\n".join(rows) + "\n]")
    assert [value if isinstance(value, str) else value["text"] for value in values(file)] == [
        "row 0",
        "row 1",
        "bad-json",
        "row 3",
        "bad-json",
        "row 5",
    ]


def test_strings_of_a_list_are_rows_of_text(tmp_path: Path) -> None:
    file = tmp_path / "stories.json"
    file.write_text(json.dumps(["one", "two"]))
    assert values(file) == [{"text": "one"}, {"text": "two"}]


def test_a_list_a_line_is_no_array(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('["a", "b"]\n["c", "d"]\n')
    assert values(file) == ["not-an-object", "not-an-object"]


def test_bad_rows_of_a_table_are_listed(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(b'text,label\na,1\nb\n"c"x,2\n\nd,e,f\n\xff,1\n"g\nh",3\n')
    found = list(read(describe(file, "rows.csv"), [].append))
    reasons = [item.reason if isinstance(item, Rejected) else item.values["text"] for item in found]
    assert reasons == ["a", "wrong-cell-count", "bad-csv", "wrong-cell-count", "bad-encoding", "g\nh"]
    assert [item.place.line for item in found] == [2, 3, 4, 6, 7, 8]
    raw = file.read_bytes()
    assert [raw[item.place.offset :].split(b"\n")[0] for item in found] == [
        b"a,1",
        b"b",
        b'"c"x,2',
        b"d,e,f",
        b"\xff,1",
        b'"g',
    ]


def test_a_quote_that_never_closes_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.csv"
    file.write_text('text,label\na,1\n"b,2\n' + "c,3\n" * 100)
    with pytest.raises(Problem, match=r"rows\.csv:3: the row opens a quote that never closes"):
        values(file)
    monkeypatch.setattr(table, "MAX_ROW", 50)
    with pytest.raises(Problem, match=r"rows\.csv:3: the row is longer"):
        values(file)


def test_a_table_without_names_of_columns_gets_some(tmp_path: Path) -> None:
    file = tmp_path / "rows.tsv"
    file.write_text('a "fine film\t1\n"bad\t0\n')
    notes: list[str] = []
    assert values(file, notes) == [
        {"column1": 'a "fine film', "column2": "1"},
        {"column1": '"bad', "column2": "0"},
    ]
    assert any("first line is a row" in note for note in notes)
    assert any("quotes are taken as they are" in note for note in notes)


def test_a_semicolon_separates_where_there_is_no_comma(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text;label\na, b;1\n")
    notes: list[str] = []
    assert values(file, notes) == [{"text": "a, b", "label": "1"}]
    assert notes


def test_a_column_named_twice_is_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text,text\na,1\n")
    with pytest.raises(Problem, match="stands twice"):
        values(file)


def test_what_is_no_parquet_is_a_problem(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    file = tmp_path / "rows.parquet"
    whole = as_parquet(ROWS)
    for content in (b"", b"no parquet", whole[:-4], whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(Problem, match="no sound Parquet"):
            values(file)


def test_a_row_group_of_absurd_size_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    from tunesmith.data.files import parquet

    file = tmp_path / "rows.parquet"
    file.write_bytes(as_parquet(ROWS))
    monkeypatch.setattr(parquet, "MAX_GROUP", 10)
    with pytest.raises(Problem, match="unpacks to"):
        values(file)


def test_a_zstandard_bomb_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "BOMB_BYTES", 2**20)
    file = tmp_path / "rows.jsonl.zst"
    file.write_bytes(zst(b"\n" * 20_000_000))
    with pytest.raises(Problem, match="compressed bytes became"):
        values(file)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.json", ("json", "")),
        ("A.JSONL.GZ", ("json", "gz")),
        ("a.b.csv.zst", ("csv", "zst")),
        ("a.gz", None),
        ("a", None),
        (".json", None),
        ("a.pkl", None),
    ],
)
def test_kinds_come_from_names(name: str, kind: tuple[str, str] | None) -> None:
    assert kind_of(name) == kind


def test_an_unknown_kind_names_the_known_ones(tmp_path: Path) -> None:
    file = tmp_path / "rows.pkl"
    file.write_bytes(b"x")
    with pytest.raises(Problem, match=r"\.pkl is no kind .*\.parquet"):
        describe(file, "rows.pkl")
