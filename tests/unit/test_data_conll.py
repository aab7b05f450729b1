"""CoNLL files: sentences with their places, whatever divides the columns; faults are rejected with their line."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.core.records import Place, Tagged
from tunesmith.core.run import DataSpec
from tunesmith.data.check import check
from tunesmith.data.files import RawRow, describe, kind_of, read
from tunesmith.data.report import Rejected
from tunesmith.data.sources import open_source

PLAIN = "EU B-ORG\nrejects O\n\nPeter B-PER\n"


def found(file: Path) -> list[RawRow | Rejected]:
    return list(read(describe(file, file.name), [].append))


def rows(folder: Path, text: str, name: str = "rows.conll") -> list[object]:
    """The sentences as (words, tags), faulty ones as (reason, line)."""
    (folder / name).write_bytes(text.encode())
    return [
        (row.reason, row.place.line) if isinstance(row, Rejected) else (row.values["tokens"], row.values["tags"])
        for row in found(folder / name)
    ]


EXPECTED: list[object] = [(["EU", "rejects"], ["B-ORG", "O"]), (["Peter"], ["B-PER"])]


@pytest.mark.parametrize("name", ["a.conll", "a.conll.txt", "a.iob", "a.BIO", "a.conll.gz", "a.conll.txt.gz"])
def test_names_that_say_conll(name: str, tmp_path: Path) -> None:
    assert (kind_of(name) or ("", ""))[0] == "conll"
    pack = gzip.compress if name.endswith("gz") else bytes
    (tmp_path / name).write_bytes(pack(PLAIN.encode()))
    assert [row.values["tokens"] for row in found(tmp_path / name) if isinstance(row, RawRow)] == [
        ["EU", "rejects"],
        ["Peter"],
    ]


def test_a_text_is_still_a_text() -> None:
    assert kind_of("conll.txt") == kind_of("my.csv.txt") == kind_of("book.txt") == ("text", "")


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.rstrip("\n"),
        PLAIN.replace(" ", "\t"),
        "\n\n" + PLAIN.replace("\n\n", "\n \n\t\n") + "\n\n",
        PLAIN.replace(" ", "  x y "),
        "-DOCSTART- O\n\n" + PLAIN,
        PLAIN.replace("\n\n", "\n-DOCSTART- -X- O\n"),
        "# id = 1\n# text = EU rejects\n" + PLAIN.replace("\n\n", "\n\n# id = 2\n"),
    ],
)
def test_files_of_every_shape_mean_the_same(tmp_path: Path, text: str) -> None:
    assert rows(tmp_path, text) == EXPECTED


def test_a_word_may_be_a_hash_and_hold_a_space_between_tabs(tmp_path: Path) -> None:
    assert rows(tmp_path, "# O\n1 B-NUM\n") == [(["#", "1"], ["O", "B-NUM"])]
    assert rows(tmp_path, "New York\tB-LOC\nis\tO\n") == [(["New York", "is"], ["B-LOC", "O"])]


def test_faults_take_their_sentence_with_them_and_name_their_line(tmp_path: Path) -> None:
    good = "a O\nb O\n\n"
    assert rows(tmp_path, f"{good}a O\nb\nc\n\n{good}") == [
        (["a", "b"], ["O", "O"]),
        ("wrong-cell-count", 5),
        (["a", "b"], ["O", "O"]),
    ]
    assert rows(tmp_path, f"{good}a x O\nb O\n") == [(["a", "b"], ["O", "O"]), ("wrong-cell-count", 5)]
    file = tmp_path / "bytes.conll"
    file.write_bytes(b"a O\n\nna\xefve O\n\nb O\n")
    assert [row.reason if isinstance(row, Rejected) else "" for row in found(file)] == ["", "bad-encoding", ""]


def test_rows_stand_at_their_bytes(tmp_path: Path) -> None:
    file = tmp_path / "rows.conll"
    text = "naïve O\nEU B\n\n龙 O\n"
    file.write_bytes(text.encode())
    (source,) = open_source(DataSpec(path=str(file)))
    records = list(source.records())
    assert [record.place for record in records] == [
        Place(str(file), 1, 0),
        Place(str(file), 4, len("naïve O\nEU B\n\n".encode())),
    ]
    assert source.reason == "lists `tokens` and `tags` in all of the first 2 rows"


WORDS = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=6).filter(
    lambda word: not word.startswith(("#", "-DOCSTART-"))
)
SENTENCES = st.lists(
    st.lists(st.tuples(WORDS, st.sampled_from(["O", "B-PER", "I-PER"])), min_size=1, max_size=5), max_size=5
)


@given(SENTENCES, st.sampled_from([" ", "\t", " x\ty "]), st.booleans())
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, sentences: list[list[tuple[str, str]]], between: str, last: bool
) -> None:
    between = between if between != " x\ty " else "\tx y\t"
    text = "\n\n".join("\n".join(f"{word}{between}{tag}" for word, tag in sentence) for sentence in sentences)
    folder = tmp_path_factory.mktemp("conll")
    expected = [([word for word, _ in sentence], [tag for _, tag in sentence]) for sentence in sentences]
    assert rows(folder, text + "\n" * last) == expected


def test_wikigold_is_read_as_tagged_words(shared_data: Path) -> None:
    file = shared_data / "ner" / "wikigold.conll.txt"
    (source,) = open_source(DataSpec(path=str(file)))
    records = [record for record in source.records() if isinstance(record, Tagged)]
    lines = [line.split(" ") for line in file.read_text("utf-8").splitlines() if line and not line.startswith("-DOC")]
    assert [word for record in records for word in record.words] == [line[0] for line in lines]
    assert Counter(tag for record in records for tag in record.tags) == Counter(line[1] for line in lines)
    own = check([DataSpec(path=str(file))]).sources[0]
    assert (own.format, own.used, own.lost) == ("tagged", len(records), 0)
