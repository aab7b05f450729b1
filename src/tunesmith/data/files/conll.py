"""CoNLL files: a word and its tag a line, a blank line after each sentence.

    EU      NNP  B-NP  B-ORG        the first column is the word, the last one its tag
    rejects VBZ  B-VP  O

    Peter   NNP  B-NP  B-PER

Columns are divided by tabs, or by spaces where a line has no tab. `-DOCSTART-` lines are no words, and a line such as
`# id = 7` before a sentence is about it. A sentence with a faulty line is one rejected row, at that line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from tunesmith.core.records import Place
from tunesmith.data.files.base import MAX_ROW, Found, RawRow, excerpt, too_long
from tunesmith.data.files.encoding import Encoding, Line, is_sound, lines, texts
from tunesmith.data.report import Rejected

DOCUMENT = "-DOCSTART-"
_COMMENT = re.compile(r"#\s.*=")


def read_conll(path: Path, name: str, packing: str, encoding: Encoding) -> Iterator[Found]:
    """The sentences of a CoNLL file, each with its words under `tokens` and their tags under `tags`.

    Raises:
        Problem: unreadable.
    """
    stream = lines(texts(path, packing, encoding), encoding)
    for between, group in groupby(stream, key=_is_between):
        if not between:
            yield from _sentence(group, name)


def _is_between(line: Line) -> bool:
    return not line.text.strip() or line.text.startswith(DOCUMENT)


def _sentence(group: Iterator[Line], name: str) -> Iterator[Found]:
    """The one row that the lines of a sentence are; none where they are all about it."""
    words: list[str] = []
    tags: list[str] = []
    first: Line | None = None
    fault: Rejected | None = None
    columns = size = 0
    for line in group:
        if not words and _COMMENT.match(line.text):
            continue
        first = first or line
        cells = _cells(line.text)
        columns, size = columns or len(cells), size + len(line.text)
        fault = fault or _fault(line, cells, columns, size, name)
        if fault is None:
            words.append(cells[0])
            tags.append(cells[-1])
    if fault:
        yield fault
    elif first:
        yield RawRow({"tokens": words, "tags": tags}, Place(name, first.number, first.offset))


def _cells(text: str) -> list[str]:
    if "\t" in text:
        return [cell.strip() for cell in text.strip("\t").split("\t")]
    return [cell for cell in text.split(" ") if cell]


def _fault(line: Line, cells: list[str], columns: int, size: int, name: str) -> Rejected | None:
    place = Place(name, line.number, line.offset)
    if line.cut or size > MAX_ROW:
        return too_long(place, line.text)
    if not is_sound(line.text):
        message = "holds bytes that do not fit the file's encoding; save the file as UTF-8"
        return Rejected(place, "bad-encoding", message, excerpt(line.text))
    if len(cells) < 2:
        message = "has one column, and a word and its tag are two"
        return Rejected(place, "wrong-cell-count", message, excerpt(line.text))
    if len(cells) != columns:
        message = f"has {len(cells)} columns, and the sentence's first line has {columns}"
        return Rejected(place, "wrong-cell-count", message, excerpt(line.text))
    return None
