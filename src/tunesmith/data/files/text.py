"""Plain text: one row a file, with line ends as LF."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tunesmith.core.records import Place
from tunesmith.data.files.base import CHUNK, MAX_ROW, Found, RawRow, excerpt, too_long
from tunesmith.data.files.encoding import Encoding, is_sound, texts
from tunesmith.data.report import Rejected


def read_text(path: Path, name: str, packing: str, encoding: Encoding, note: Callable[[str], None]) -> Iterator[Found]:
    """The one row of a text file; none where the file is empty.

    Raises:
        Problem: unreadable.
    """
    place = Place(name, 1, encoding.mark)
    parts: list[str] = []
    size = 0
    for piece in texts(path, packing, encoding):
        size += len(piece)
        if size > MAX_ROW:
            yield too_long(place, parts[0] if parts else "")
            return
        parts.append(piece)
    text = "".join(parts).replace("\r\n", "\n").replace("\r", "\n")
    if not is_sound(text):
        message = "holds bytes that do not fit the file's encoding; save the file as UTF-8"
        yield Rejected(place, "bad-encoding", message, excerpt(text))
    elif text:
        if _is_table(text):
            hint = "name its `columns` to read its rows, or rename it to .tsv"
            note(f"{name} looks like a table with tabs, and is read as one text; {hint}")
        yield RawRow({"text": text}, place)


def is_table(path: Path, packing: str, encoding: Encoding) -> bool:
    """Whether a text file looks like a table with tabs, by its first lines."""
    return _is_table(next(texts(path, packing, encoding), ""))


def _is_table(text: str) -> bool:
    tabs = [line.count("\t") for line in text[:CHUNK].split("\n")[:20]]
    return len(tabs) > 2 and tabs[0] > 0 and tabs[:-1] == tabs[:1] * (len(tabs) - 1)
