"""The report accounts for every row, and survives being written and read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.core.problem import Problem
from tunesmith.core.records import Chat, Labelled, Message, Place, Text
from tunesmith.core.run import DataSpec
from tunesmith.data.check import DUPLICATES, check
from tunesmith.data.oddities import Seen, content_hash
from tunesmith.data.report import EXAMPLES, DataReport, Rejected, SourceReport


def report_with(rejects: Path | None, bad: int) -> DataReport:
    report = DataReport(rejects)
    number = report.begin(SourceReport("rows.jsonl", "alpaca", "it looks so"))
    for line in range(bad):
        report.reject(
            number, Rejected(Place("rows.jsonl", line + 1, line * 10), "bad-json", "is no JSON", "{\udcff 龙")
        )
    report.use(number)
    report.add(number, "over-long rows dropped", 4)
    return report


def test_rejected_rows_are_streamed_and_few_are_held(tmp_path: Path) -> None:
    rejects = tmp_path / "out" / "rejects.jsonl"
    report = report_with(rejects, 100)
    report.close()
    listed = [json.loads(line) for line in rejects.read_text("utf-8").splitlines()]
    assert [row["line"] for row in listed] == list(range(1, 101))
    assert set(listed[0]) == {"file", "line", "offset", "reason", "message", "excerpt"}
    assert len(report.sources[0].examples["bad-json"]) == EXAMPLES


def test_a_report_survives_the_disk(tmp_path: Path) -> None:
    report = report_with(tmp_path / "rejects.jsonl", 5)
    report.save(tmp_path / "report.json")
    again = DataReport.load(tmp_path / "report.json")
    assert again.plain() == report.plain()
    assert again.lines(long=True) == report.lines(long=True)
    again.add(0, "over-long rows dropped")
    assert again.sources[0].counters["over-long rows dropped"] == 5


def test_a_row_that_is_not_accounted_for_is_a_bug() -> None:
    report = report_with(None, 1)
    report.sources[0].rows_in += 1
    with pytest.raises(RuntimeError, match="3 rows in, but 1 used"):
        report.plain()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sources": [{"path": 1}], "rejects": null}'])
def test_what_is_no_report_is_a_problem(tmp_path: Path, content: str) -> None:
    file = tmp_path / "report.json"
    file.write_text(content)
    with pytest.raises(Problem, match="is no data report"):
        DataReport.load(file)


def test_lines_say_what_a_person_needs(tmp_path: Path) -> None:
    short = report_with(tmp_path / "rejects.jsonl", 5).lines()
    assert short == [
        "rows.jsonl: 6 rows in = 1 used + 5 rejected",
        "  format alpaca: it looks so",
        "  5 rejected as bad-json, the first at rows.jsonl:1: is no JSON",
        "  over-long rows dropped: 4",
        f"Rejected rows, each with its place and reason: {tmp_path / 'rejects.jsonl'}",
    ]
    long = report_with(None, 5).lines(long=True)
    assert sum("is no JSON" in line for line in long) == 1 + EXAMPLES


def test_rejects_of_an_earlier_check_do_not_stay(tmp_path: Path) -> None:
    rejects = tmp_path / "rejects.jsonl"
    rejects.write_text("old")
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}')
    check([DataSpec(path=str(tmp_path / "rows.jsonl"))], rejects)
    assert not rejects.exists()


def test_duplicates_are_found_across_sources_and_whatever_the_place(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(f'{{"text": "same"}}\n{{"text": "{name}"}}')
    report = check([DataSpec(path=str(tmp_path / name)) for name in ("a.jsonl", "b.jsonl")])
    assert [source.counters[DUPLICATES] for source in report.sources] == [0, 1]


def test_a_hash_is_of_the_content_and_of_the_kind() -> None:
    def chat(*contents: str) -> Chat:
        return Chat(tuple(Message("user", content) for content in contents))

    different = [Text("a"), Text("b"), chat("a"), chat("a", "b"), chat("ab"), Labelled("a", ("b",)), Labelled("ab", ())]
    assert len({content_hash(record) for record in different}) == len(different)
    assert content_hash(Text("a", place=Place("x", 1))) == content_hash(Text("a", place=Place("y", 2)))


def test_seen_agrees_with_a_set() -> None:
    seen, known = Seen(), set[bytes]()
    for number in range(20_000):
        content = (number * 7919 % 9_000 + 1).to_bytes(16, "little")
        assert seen.add(content) is (content in known)
        known.add(content)
    assert seen.count == len(known)


def test_seen_remembers_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.data.oddities.MOST_HASHES", 10)
    seen = Seen()
    assert not any(seen.add(number.to_bytes(16, "little")) for number in range(1, 50))
    assert seen.full
    assert seen.add((5).to_bytes(16, "little"))


def test_oddities_are_counted_and_kept(tmp_path: Path) -> None:
    rows = [{"text": "I am {{name}}"}, {"text": "lost \ufffd"}, {"text": "donâ€™t"}, {"text": "plain 龙"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    own = check([DataSpec(path=str(tmp_path / "rows.jsonl"))]).sources[0]
    assert own.used == 4
    assert sorted(own.counters.values()) == [1, 1, 1]
