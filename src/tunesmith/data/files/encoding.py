"""From bytes to text and lines, without losing where each character stood.

A byte order mark settles the encoding. Without one it is UTF-8, unless the first bytes beyond ASCII say otherwise and
read as common Chinese in GB18030; that guess is reported. Bytes that do not fit the encoding do not stop the file: each
becomes a marker (a lone surrogate U+DC00 + byte), and the row that holds it is rejected by its place.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tunesmith.core.problem import Problem
from tunesmith.data.files.base import EXCERPT, MAX_ROW
from tunesmith.data.files.opening import chunks

KEEP_BYTES = "tunesmith.keep_bytes"
SEARCH_BYTES = 2**28
"""How far a file is searched for the first byte beyond ASCII."""
WINDOW = 2**16
"""Bytes the guess is made from."""
_MARKS = [
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
]
_BEYOND_ASCII = re.compile(rb"[\x80-\xff]")
_MARKER = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the bytes of a file are read: a codec, the length of the byte order mark, and whether it is a guess."""

    codec: str = "utf-8"
    mark: int = 0
    guessed: bool = False

    @property
    def unit(self) -> int:
        """Bytes of a line end."""
        return int(self.codec[4:6]) // 8 if self.codec.startswith(("utf-16", "utf-32")) else 1

    def width(self, text: str) -> int:
        """How many bytes of the file a text is."""
        if self.unit == 1 and text.isascii():
            return len(text)
        try:
            return len(text.encode(self.codec))
        except UnicodeEncodeError:
            sound, markers = _MARKER.subn("", text)
            return len(sound.encode(self.codec)) + markers


@dataclass(frozen=True, slots=True)
class Line:
    """A line without its end; `cut` says that it was longer than a row may be and only its beginning is here."""

    text: str
    number: int
    offset: int
    cut: bool


def is_sound(text: str) -> bool:
    """Whether a text holds no marker of a wrong byte and no lone surrogate."""
    return text.isascii() or not _MARKER.search(text)


def find_encoding(path: Path, packing: str) -> Encoding:
    """The encoding of a text file.

    Raises:
        Problem: it looks like UTF-16 without a byte order mark, or cannot be opened.
    """
    stream = chunks(path, packing)
    head = next(stream, b"")
    for mark, codec in _MARKS:
        if head.startswith(mark):
            return Encoding(codec, len(mark))
    if head[:4096].count(0) > len(head[:4096]) // 4:
        raise Problem(
            str(path), "looks like UTF-16 without a byte order mark, or like no text at all", "Save it as UTF-8"
        )
    return _judge(_window(chain([head], stream)))


def texts(path: Path, packing: str, encoding: Encoding) -> Iterator[str]:
    """The text of a file in bounded pieces, without byte order mark; wrong bytes are markers."""
    decoder = codecs.getincrementaldecoder(encoding.codec)(errors=KEEP_BYTES)
    skip = encoding.mark
    for chunk in chunks(path, packing):
        rest = chunk[skip:]
        skip -= len(chunk) - len(rest)
        text = decoder.decode(rest)
        if text:
            yield text
    tail = decoder.decode(b"", True)
    if tail:
        yield tail


def lines(pieces: Iterator[str], encoding: Encoding) -> Iterator[Line]:
    """The lines of a text, ended by LF, CRLF or CR, with number (from 1) and byte offset."""
    held: list[str] = []
    number, start, offset, size = 1, encoding.mark, encoding.mark, 0
    for piece, ends in _split(pieces):
        size += len(piece)
        offset += encoding.width(piece) + ends * encoding.unit
        held = [*held[:1], piece[: 2 * EXCERPT]] if size > MAX_ROW else _grown(held, piece)
        if ends:
            yield Line("".join(held), number, start, size > MAX_ROW)
            held, size, start, number = [], 0, offset, number + 1
    if held:
        yield Line("".join(held), number, start, size > MAX_ROW)


def _grown(held: list[str], piece: str) -> list[str]:
    held.append(piece)
    return held


def _split(pieces: Iterator[str]) -> Iterator[tuple[str, int]]:
    """Parts of lines with how many characters end the line after each; 0 where it goes on."""
    carry = ""
    for piece in pieces:
        text = carry + piece
        carry = "\r" if text.endswith("\r") else ""
        *whole, rest = text[: len(text) - len(carry)].split("\n")
        for line in whole:
            yield from _split_old(line) if "\r" in line else ((line, 1),)
        *old, rest = rest.split("\r")
        yield from ((line, 1) for line in old)
        if rest:
            yield rest, 0
    if carry:
        yield "", 1


def _split_old(line: str) -> Iterator[tuple[str, int]]:
    pair = line.endswith("\r")
    *old, last = line[: len(line) - pair].split("\r")
    yield from ((part, 1) for part in old)
    yield last, 1 + pair


def _window(stream: Iterator[bytes]) -> bytes:
    """The first bytes from the first byte beyond ASCII on; empty where there is none."""
    seen = 0
    for chunk in stream:
        found = None if chunk.isascii() else _BEYOND_ASCII.search(chunk)
        if found:
            return (chunk[found.start() :] + next(stream, b""))[:WINDOW]
        seen += len(chunk)
        if seen > SEARCH_BYTES:
            break
    return b""


def _judge(window: bytes) -> Encoding:
    """UTF-8 unless most of the bytes beyond ASCII do not fit it and do read as common Chinese."""
    beyond, wrong = _beyond(window, "utf-8")
    if wrong <= len(beyond):
        return Encoding()
    beyond, wrong = _beyond(window, "gb18030")
    common = len(beyond.encode("gb2312", "ignore")) // 2
    if common >= 0.7 * (len(beyond) + wrong):
        return Encoding("gb18030", guessed=True)
    return Encoding(guessed=True)


def _beyond(window: bytes, codec: str) -> tuple[str, int]:
    text = (
        re.sub("[\ud800-\udfff]{1,3}$", "", window.decode(codec, KEEP_BYTES))
        if len(window) == WINDOW
        else (window.decode(codec, KEEP_BYTES))
    )
    sound, wrong = _MARKER.subn("", text)
    return re.sub("[\x00-\x7f]+", "", sound), wrong


def _keep_bytes(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error(KEEP_BYTES, _keep_bytes)
