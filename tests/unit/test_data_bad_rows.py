"""Bad files: each ends as rejected rows with their places and reasons, or as one Problem; never as a crash."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tunesmith.core.problem import Problem
from tunesmith.core.run import DataSpec
from tunesmith.data.check import DUPLICATES, check
from tunesmith.data.files import json_rows, opening

GOOD = '{"instruction": "q%d", "output": "a"}'


def alpaca(**parts: object) -> str:
    return json.dumps({"instruction": "q", "output": "a", **parts}, ensure_ascii=False)


def chat(*roles: str) -> str:
    return json.dumps({"messages": [{"role": role, "content": "x"} for role in roles]})


BAD_LINES: dict[str, tuple[bytes, str]] = {
    "broken line": (b'{"instruction": "q", "output": ', "bad-json"),
    "no JSON at all": (b"hello there", "bad-json"),
    "a quote is missing": (b'{"instruction": "q, "output": "a"}', "bad-json"),
    "trailing garbage": (GOOD.encode() % 1 + b" xyz", "extra-data"),
    "two objects on a line": (GOOD.encode() % 1 + GOOD.encode() % 2, "extra-data"),
    "a key twice": (b'{"instruction": "q", "output": "a", "output": "b"}', "duplicate-key"),
    "a key twice, deep inside": (b'{"instruction": "q", "output": "a", "m": [{"k": 1, "k": 2}]}', "duplicate-key"),
    "raw NUL": (b'{"instruction": "q\x00", "output": "a"}', "nul-character"),
    "raw NUL between": (b'{"instruction": "q", \x00"output": "a"}', "nul-character"),
    "escaped NUL": (b'{"instruction": "q", "output": "a\\u0000"}', "nul-character"),
    "lone surrogate": (b'{"instruction": "q", "output": "a\\ud800"}', "lone-surrogate"),
    "lone low surrogate": (b'{"instruction": "\\udc00q", "output": "a"}', "lone-surrogate"),
    "surrogate in raw bytes": (b'{"instruction": "q", "output": "\xed\xa0\x80"}', "bad-encoding"),
    "one wrong byte": (b'{"instruction": "caf\xe9", "output": "a"}', "bad-encoding"),
    "NaN": (b'{"instruction": "q", "output": "a", "score": NaN}', "not-a-number"),
    "Infinity": (b'{"instruction": "q", "output": "a", "score": -Infinity}', "not-a-number"),
    "30-digit integer": (b'{"instruction": "q", "output": "a", "id": ' + b"1" * 30 + b"}", "huge-number"),
    "10,000-digit integer": (b'{"instruction": "q", "output": "a", "id": ' + b"1" * 10_000 + b"}", "huge-number"),
    "beyond floating point": (b'{"instruction": "q", "output": "a", "id": 1e999}', "huge-number"),
    "depth 2000": (b'{"instruction": "q", "output": "a", "x": ' + b"[" * 2000 + b"]" * 2000 + b"}", "too-deep"),
    "depth 20,000": (b'{"x": ' + b'{"x":' * 20_000 + b"1" + b"}" * 20_001, "too-deep"),
    "depth 150": (b'{"instruction": "q", "output": "a", "x": ' + b"[" * 150 + b"]" * 150 + b"}", "too-deep"),
    "an array": (b'["q", "a"]', "not-an-object"),
    "a number": (b"42", "not-an-object"),
    "null": (b"null", "not-an-object"),
    "output is a number": (alpaca(output=5).encode(), "wrong-type"),
    "output is an object": (alpaca(output={"a": 1}).encode(), "wrong-type"),
    "output is a list": (alpaca(output=["a"]).encode(), "wrong-type"),
    "output is true": (alpaca(output=True).encode(), "wrong-type"),
    "output is null": (alpaca(output=None).encode(), "wrong-type"),
    "output is missing": (b'{"instruction": "q"}', "missing-part"),
    "output is empty": (alpaca(output="").encode(), "empty-output"),
    "output is blank": (alpaca(output=" \n\t").encode(), "empty-output"),
    "nothing asked": (alpaca(instruction="").encode(), "empty-input"),
    "system is a number": (alpaca(system=1).encode(), "wrong-type"),
    "history is no pair": (alpaca(history=[["a"]]).encode(), "wrong-type"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_listed_with_its_place_and_the_others_are_used(tmp_path: Path, name: str) -> None:
    bad, reason = BAD_LINES[name]
    before = [(GOOD % number).encode() for number in range(5)]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join([*before, bad, (GOOD % 9).encode()]) + b"\n")
    report = check([DataSpec(path=str(file))], tmp_path / "rejects.jsonl")
    own = report.sources[0]
    assert (own.rows_in, own.used, dict(own.rejected)) == (7, 6, {reason: 1})
    listed = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text("utf-8").splitlines()]
    assert len(listed) == 1
    assert (listed[0]["line"], listed[0]["reason"]) == (6, reason)
    assert file.read_bytes()[listed[0]["offset"] :].startswith(bad + b"\n")
    assert 0 < len(listed[0]["message"]) < 300
    assert len(listed[0]["excerpt"]) < 400


@pytest.mark.parametrize(
    "name", sorted(set(BAD_LINES) - {"a quote is missing", "trailing garbage", "two objects on a line", "broken line"})
)
def test_a_bad_element_of_an_array_is_listed_with_its_place(tmp_path: Path, name: str) -> None:
    bad, reason = BAD_LINES[name]
    rows = [(GOOD % 0).encode(), bad, (GOOD % 1).encode(), (GOOD % 2).encode()]
    file = tmp_path / "rows.json"
    file.write_bytes(b"[\n" + b",\n".join(rows) + b"\n]\n")
    report = check([DataSpec(path=str(file))], tmp_path / "rejects.jsonl")
    own = report.sources[0]
    assert (own.rows_in, own.used, list(own.rejected.values())) == (4, 3, [1])
    if name != "no JSON at all":
        assert dict(own.rejected) == {reason: 1}
    listed = json.loads((tmp_path / "rejects.jsonl").read_text("utf-8"))
    assert listed["line"] == 3
    assert file.read_bytes()[listed["offset"] :].startswith(bad)


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_file_of_nothing_but_bad_rows_is_one_problem(tmp_path: Path, name: str) -> None:
    bad, reason = BAD_LINES[name]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join([bad] * 3) + b"\n")
    with pytest.raises(Problem) as caught:
        check([DataSpec(path=str(file), format="alpaca")])
    assert "none of its 3 rows can be used" in str(caught.value)
    assert reason in str(caught.value)
    assert "rows.jsonl:1" in str(caught.value)


def problem_of(file: Path, content: bytes, **options: str) -> str:
    file.write_bytes(content)
    with pytest.raises(Problem) as caught:
        check([DataSpec(path=str(file), **options)])  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.tsv", "rows.txt"])
@pytest.mark.parametrize("content", [b"", b"\n\n\r\n  \n", b"\xef\xbb\xbf"])
def test_a_file_without_rows_is_a_problem(tmp_path: Path, name: str, content: bytes) -> None:
    if name == "rows.txt" and content.strip(b"\xef\xbb\xbf"):
        assert "empty-text" in problem_of(tmp_path / name, content)
    else:
        assert "no rows" in problem_of(tmp_path / name, content) or "is empty" in problem_of(tmp_path / name, content)


@pytest.mark.parametrize("content", [b"[]", b"[ \n ]\n"])
def test_an_empty_array_is_a_problem(tmp_path: Path, content: bytes) -> None:
    assert "holds no rows" in problem_of(tmp_path / "rows.json", content)


def test_an_array_that_is_cut_off_is_a_problem(tmp_path: Path) -> None:
    text = problem_of(tmp_path / "rows.json", b"[" + (GOOD % 1).encode() + b",\n" + (GOOD % 2).encode())
    assert "never ends" in text
    assert "rows.json:2" in text


def test_a_row_whose_brackets_never_match_is_a_problem(tmp_path: Path) -> None:
    text = problem_of(tmp_path / "rows.json", f'[{GOOD % 1},\n{{"instruction": [[[ }}, {GOOD % 2}]'.encode())
    assert "rows.json:2" in text


def test_a_cut_gzip_file_is_a_problem(tmp_path: Path) -> None:
    rows = "\n".join(GOOD % number for number in range(5000)).encode()
    packed = gzip.compress(rows)
    for cut in (len(packed) // 2, len(packed) - 3, 5):
        assert "cut off" in problem_of(tmp_path / "rows.jsonl.gz", packed[:cut])
    assert "no sound gzip" in problem_of(tmp_path / "rows.jsonl.gz", b"plainly not packed")
    damaged = bytearray(packed)
    damaged[len(packed) // 2] ^= 0xFF
    assert "gzip" in problem_of(tmp_path / "rows.jsonl.gz", bytes(damaged))


def test_a_cut_zstandard_file_is_a_problem(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    packed = zstandard.compress("\n".join(GOOD % number for number in range(5000)).encode())
    assert "cut off" in problem_of(tmp_path / "rows.jsonl.zst", packed[: len(packed) // 2])
    assert "no sound zstandard" in problem_of(tmp_path / "rows.jsonl.zst", b"plainly not packed")


def test_a_decompression_bomb_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.jsonl.gz"
    monkeypatch.setattr(opening, "BOMB_BYTES", 2**20)
    file.write_bytes(gzip.compress(b"\n" * 5_000_000))
    with pytest.raises(Problem, match="compressed bytes became"):
        check([DataSpec(path=str(file))])


def test_line_ends_of_every_kind_separate_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    content = b"".join(
        (GOOD % n).encode() + end for n, end in enumerate([b"\n", b"\r\n", b"\r", b"\r\r\n", b"\n\r", b""])
    )
    file.write_bytes(content + b"\r\n{bad\r")
    report = check([DataSpec(path=str(file))], tmp_path / "rejects.jsonl")
    assert (report.sources[0].used, report.sources[0].lost) == (6, 1)
    listed = json.loads((tmp_path / "rejects.jsonl").read_text())
    assert content[: listed["offset"]].count(b"{") == 6
    assert listed["line"] == 9


def test_an_array_in_a_jsonl_file_is_read_and_said(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps([json.loads(GOOD % n) for n in range(4)], indent=1))
    report = check([DataSpec(path=str(file))])
    assert report.sources[0].used == 4
    assert any("one JSON array" in note for note in report.sources[0].notes)


def test_lines_in_a_json_file_are_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text("\n".join(GOOD % n for n in range(4)))
    assert check([DataSpec(path=str(file))]).sources[0].used == 4


def test_objects_over_several_lines_are_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(json.loads(GOOD % n), indent=2) for n in range(4)))
    assert check([DataSpec(path=str(file))]).sources[0].used == 4


def test_what_follows_an_array_is_listed(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(f"[{GOOD % 1}, {GOOD % 2} {GOOD % 3}] and more")
    own = check([DataSpec(path=str(file))]).sources[0]
    assert (own.rows_in, own.used, dict(own.rejected)) == (4, 2, {"missing-comma": 1, "trailing-garbage": 1})


def test_a_row_of_50_mb_is_read_and_one_of_70_is_listed(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    with file.open("w") as out:
        for size in (1, 50_000_000, 70_000_000, 2):
            out.write('{"text": "' + "x" * size + '"}\n')
    own = check([DataSpec(path=str(file))]).sources[0]
    assert (own.rows_in, own.used, dict(own.rejected)) == (4, 3, {"row-too-long": 1})


def test_a_long_element_of_an_array_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.json"
    monkeypatch.setattr(json_rows, "MAX_ROW", 2**20)
    file.write_text("[" + ", ".join('{"text": "' + "x" * size + '"}' for size in (1, 1_100_000, 9_000_000, 2)) + "]")
    own = check([DataSpec(path=str(file))]).sources[0]
    assert (own.rows_in, own.used, dict(own.rejected)) == (4, 2, {"row-too-long": 2})


def test_many_duplicates_are_counted_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text((GOOD % 1 + "\n") * 20_000 + GOOD % 2)
    own = check([DataSpec(path=str(file))]).sources[0]
    assert (own.used, own.counters[DUPLICATES]) == (20_001, 19_999)


def test_all_outputs_empty_is_one_problem(tmp_path: Path) -> None:
    rows = "\n".join(alpaca(output="") for _ in range(60))
    text = problem_of(tmp_path / "rows.jsonl", rows.encode())
    assert "60 are rejected as empty-output" in text


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        (["assistant", "user"], "role-order"),
        (["user", "user", "assistant"], "role-order"),
        (["user", "assistant", "assistant"], "role-order"),
        (["user", "system", "assistant"], "role-order"),
        (["user", "tool", "assistant"], "role-order"),
        (["user", "assistant", "tool"], "role-order"),
        (["user", "assistant", "user"], "no-final-answer"),
        (["system"], "no-final-answer"),
        (["user", "narrator"], "unknown-role"),
        (["user", "Assistant"], "unknown-role"),
    ],
)
def test_broken_orders_and_roles_are_listed(tmp_path: Path, roles: list[str], reason: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([chat("user", "assistant"), chat(*roles), chat("system", "user", "assistant")]))
    own = check([DataSpec(path=str(file))]).sources[0]
    assert (own.used, dict(own.rejected)) == (2, {reason: 1})


@pytest.mark.parametrize("label", [None, ["a"], [], {}, ""])
def test_a_label_of_a_wrong_type_is_listed(tmp_path: Path, label: object) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"text": "t", "label": "good"}, {"text": "t", "label": 1}, {"text": "t", "label": label}]
    file.write_text("\n".join(map(json.dumps, rows)))
    own = check([DataSpec(path=str(file))]).sources[0]
    assert (own.used, own.lost) == (2, 1)


@pytest.mark.parametrize("label", [None, 1, "yes", []])
def test_a_rating_of_a_wrong_type_is_listed(tmp_path: Path, label: object) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": "q", "completion": "a", "label": value} for value in (True, False, label)]
    file.write_text("\n".join(map(json.dumps, rows)))
    own = check([DataSpec(path=str(file))]).sources[0]
    assert (own.format, own.used, own.lost) == ("rated", 2, 1)


def test_strange_but_sound_characters_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    text = "שלום \u202eabc\u202c\u200b \u2028 \x85 \U0001f600 <|im_end|> \ufeff"
    file.write_text("\n".join([alpaca(output=text), alpaca(output="plain")]), "utf-8")
    from tunesmith.data.sources import open_source

    records = list(open_source(DataSpec(path=str(file)))[0].records())
    assert len(records) == 2
    assert records[0].messages[-1].content == text  # type: ignore[union-attr]
    own = check([DataSpec(path=str(file))]).sources[0]
    assert own.counters["rows with invisible characters (zero-width or text direction)"] == 1


def test_a_bad_row_stops_where_the_run_says_so(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{GOOD % 1}\n{{bad\n{GOOD % 2}")
    with pytest.raises(Problem, match=r"rows\.jsonl:2: bad-json.*quarantine"):
        check([DataSpec(path=str(file), on_bad_row="stop")])
