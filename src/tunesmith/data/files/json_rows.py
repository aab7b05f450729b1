"""JSON and JSONL: rows one at a time, whatever the size of the file, with broken rows told apart from sound ones.

What a file is, is seen from its beginning, not from its name:

    [ {…}, {…} ]        an array: each element is a row
    {…} ⏎ {…} ⏎         lines: each line is a row
    {… ⏎ …} {…}         values over several lines: each value is a row

Stricter than Python's json: a key twice, NaN, numbers beyond 64 bits and nesting beyond MAX_DEPTH are refused. A broken
element of an array is skipped by its brackets; where they no longer match, what follows cannot be counted, and that is
a Problem rather than a rejected row.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast

from tunesmith.core.problem import Problem
from tunesmith.core.records import Place
from tunesmith.data.files.base import CHUNK, EXCERPT, MAX_ROW, Found, RawRow, excerpt, too_long
from tunesmith.data.files.encoding import Encoding, Line, is_sound, lines, texts
from tunesmith.data.formats import RowFault
from tunesmith.data.parts import kind_of
from tunesmith.data.report import Rejected

MAX_DEPTH = 100
"""The deepest nesting of a row."""
HEAD = 2**20
"""Characters from which the shape of a file is seen."""
Shape = Literal["array", "lines", "values"]
_LINE_END = re.compile(r"\r\n|\n|\r")
_SPACE = re.compile(r"[ \t\r\n]*")
_OUTSIDE = re.compile(r'["{}\[\],]')
_INSIDE = re.compile(r'\\.|["\r\n]', re.DOTALL)


def read_json(path: Path, name: str, packing: str, encoding: Encoding, note: Callable[[str], None]) -> Iterator[Found]:
    """The rows of a JSON or JSONL file; `note` is told what a person should know about its shape.

    Raises:
        Problem: unreadable, or broken so that the rows after some point cannot be counted.
    """
    stream = texts(path, packing, encoding)
    head = _head(stream)
    shape = _shape(head)
    stream = chain([head], stream)
    if shape == "lines":
        return _rows_of_lines(name, lines(stream, encoding))
    if shape == "array" and ".jsonl" in name:
        note(f"{name} holds one JSON array, though its name says one row a line")
    return _Scanner(name, stream, encoding).rows(shape)


def parse(text: str) -> Any:
    """The value of one JSON text.

    Raises:
        RowFault: no JSON, or JSON that no row should hold.
    """
    if not is_sound(text):
        raise RowFault("bad-encoding", "holds bytes that do not fit the file's encoding; save the file as UTF-8")
    try:
        return _checked_depth(_STRICT.decode(text), text)
    except json.JSONDecodeError as error:
        raise _fault(text, error) from error
    except RecursionError as error:
        raise _too_deep() from error


def _rows_of_lines(name: str, found: Iterator[Line]) -> Iterator[Found]:
    for line in found:
        place = Place(name, line.number, line.offset)
        if line.cut:
            yield too_long(place, line.text)
        elif line.text.strip(" \t\x0b\x0c"):
            yield _row(place, line.text)


def _row(place: Place, text: str) -> Found:
    try:
        return _as_row(parse(text), place)
    except RowFault as fault:
        return Rejected(place, fault.reason, str(fault), excerpt(text))


def _as_row(value: Any, place: Place) -> RawRow:
    """The row a value is; a bare string is a row of text."""
    if isinstance(value, dict):
        return RawRow(cast(dict[str, Any], value), place)
    if isinstance(value, str):
        return RawRow({"text": value}, place)
    raise RowFault("not-an-object", f"a row is an object with named columns, and this is {kind_of(value)}")


def _head(stream: Iterator[str]) -> str:
    head = ""
    for text in stream:
        head += text
        if len(head) >= HEAD or (head.strip() and _LINE_END.search(head.strip())):
            break
    return head


def _shape(head: str) -> Shape:
    first, _, rest = _LINE_END.sub("\n", head.lstrip()).partition("\n")
    if first.startswith("["):
        return "lines" if _whole(first) and rest.lstrip().startswith("[") else "array"
    return "values" if first.strip() == "{" else "lines"


def _whole(text: str) -> bool:
    try:
        parse(text)
    except RowFault:
        return False
    return True


class _Scanner:
    """Reads values one after another from a text that is held only in part.

    buffer[at:] is what is not yet consumed; line and offset are those of buffer[at].
    """

    def __init__(self, name: str, stream: Iterator[str], encoding: Encoding) -> None:
        self.name = name
        self.stream = stream
        self.encoding = encoding
        self.buffer = ""
        self.at = 0
        self.ended = False
        self.line = 1
        self.offset = encoding.mark

    def rows(self, shape: Shape) -> Iterator[Found]:
        """Each element of an array, or each value of a sequence of values."""
        array = shape == "array"
        if array:
            self._space()
            self._take(self.at + 1)
        apart = True
        while (char := self._space()) and char != "]":
            if char == ",":
                found = _SPACE.match(self.buffer, self.at + 1)
                self._take(found.end() if found else self.at + 1)
                apart = True
                continue
            row = self._element()
            yield row if apart or not array else self._no_comma(row)
            apart = not array
        yield from self._after(char, array)

    def _after(self, char: str, array: bool) -> Iterator[Found]:
        if array and not char:
            raise Problem(f"{self.name}:{self.line}", "the array never ends: the file is cut off", "Fetch it again")
        if array:
            self._take(self.at + 1)
        if self._space():
            place = self._place()
            yield Rejected(place, "trailing-garbage", "something follows the end of the rows", self._excerpt())

    def _no_comma(self, row: Found) -> Rejected:
        shown = excerpt(json.dumps(row.values, ensure_ascii=False)) if isinstance(row, RawRow) else row.excerpt
        return Rejected(row.place, "missing-comma", "no comma stands between this row and the one before it", shown)

    def _element(self) -> Found:
        """The value at buffer[at], consumed."""
        place = self._place()
        while True:
            try:
                value, end = _STRICT.raw_decode(self.buffer, self.at)
                if end < len(self.buffer) or self.ended:
                    return self._sound(value, end, place)
            except json.JSONDecodeError as error:
                if self.ended or not self._cut_short(error):
                    return self._broken(_fault(self.buffer, error, self.at), place)
            except RowFault as fault:
                return self._broken(fault, place)
            except RecursionError:
                return self._broken(_too_deep(), place)
            if len(self.buffer) - self.at > MAX_ROW:
                rejected = too_long(place, self.buffer[self.at : self.at + 2 * EXCERPT])
                self._skip()
                return rejected
            self._fill()

    def _sound(self, value: Any, end: int, place: Place) -> Found:
        text = self.buffer[self.at : end]
        self._take(end)
        if len(text) > MAX_ROW:
            return too_long(place, text)
        try:
            if not is_sound(text):
                parse(text)
            return _as_row(_checked_depth(value, text), place)
        except RowFault as fault:
            return Rejected(place, fault.reason, str(fault), excerpt(text))

    def _broken(self, fault: RowFault, place: Place) -> Rejected:
        rejected = Rejected(place, fault.reason, str(fault), self._excerpt())
        try:
            self._skip()
        except EOFError as error:
            raise Problem(
                f"{self.name}:{place.line}",
                f"{fault}, and from here on the brackets do not match, so the rows after it cannot be told apart",
                "Mend this row; the rows before it are sound",
            ) from error
        return rejected

    def _cut_short(self, error: json.JSONDecodeError) -> bool:
        """Whether the error may come from the end of the buffer rather than from the text."""
        return error.pos > len(self.buffer) - 16 or error.msg.startswith("Unterminated string")

    def _skip(self) -> None:
        """Consume the value at buffer[at] by its brackets; strings end at line ends, as in sound JSON.

        Raises:
            EOFError: the text ends before the value does.
        """
        depth, quoted = 0, False
        while True:
            found = self._next(_INSIDE if quoted else _OUTSIDE)
            if quoted:
                quoted = found.startswith("\\")
            elif found == '"':
                quoted = True
            elif depth == 0 and found in ",]}":
                self._take(self.at + (found == "}"))
                return
            else:
                depth += (found in "{[") - (found in "]}")
            self._take(self.at + len(found))
            if depth == 0 and found in ("}", "]"):
                return

    def _next(self, pattern: re.Pattern[str]) -> str:
        """Consume what stands before the next match and say what it is."""
        while not (found := pattern.search(self.buffer, self.at)):
            held = self.buffer.endswith("\\")
            self._take(len(self.buffer) - held)
            if not self._fill():
                raise EOFError
        self._take(found.start())
        return found.group()

    def _space(self) -> str:
        """Consume white space; the next character, or "" at the end."""
        while True:
            char = self.buffer[self.at : self.at + 1]
            if char and char not in " \t\r\n":
                return char
            found = _SPACE.match(self.buffer, self.at)
            self._take(found.end() if found else self.at)
            if self.at == len(self.buffer) and not self._fill():
                return ""

    def _fill(self) -> bool:
        """Let go of what is consumed and at least double what is held; False at the end of the text."""
        parts = [self.buffer[self.at :]]
        wanted, got = max(CHUNK, len(parts[0])), 0
        while got < wanted and not self.ended:
            text = next(self.stream, None)
            if text is None:
                self.ended = True
            else:
                parts.append(text)
                got += len(text)
        self.buffer, self.at = "".join(parts), 0
        return got > 0

    def _take(self, end: int) -> None:
        if end > self.at:
            text = self.buffer[self.at : end]
            self.at = end
            self.offset += self.encoding.width(text)
            self.line += text.count("\n")
            if "\r" in text:
                self.line += text.count("\r") - text.count("\r\n")

    def _place(self) -> Place:
        return Place(self.name, self.line, self.offset)

    def _excerpt(self) -> str:
        return excerpt(self.buffer[self.at : self.at + 2 * EXCERPT])


def _fault(text: str, error: json.JSONDecodeError, start: int = 0) -> RowFault:
    """What is wrong with the row that begins at `start`."""
    where = f"character {error.pos - start + 1} of the row"
    if not is_sound(text[start : error.pos + 1]):
        return RowFault("bad-encoding", "holds bytes that do not fit the file's encoding; save the file as UTF-8")
    if "\0" in text[error.pos : error.pos + 1]:
        return RowFault("nul-character", f"holds a NUL character ({where})")
    if error.msg == "Extra data":
        return RowFault("extra-data", f"something follows the row's end ({where}); write one row a line")
    return RowFault("bad-json", f"is no JSON: {error.msg.removesuffix(' at')} ({where})")


def _checked_depth(value: Any, text: str) -> Any:
    if text.count("{") + text.count("[") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise _too_deep()
    return value


def _depth(value: Any) -> int:
    """How deep a value is nested, level by level so that depth costs no recursion."""
    depth, level = -1, [value]
    while level:
        depth += 1
        level = [inner for item in level for inner in _inside(item)]
    return depth


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return cast("dict[str, Any]", value).values()
    return cast("list[Any]", value) if isinstance(value, list) else ()


def _too_deep() -> RowFault:
    return RowFault("too-deep", f"is nested deeper than {MAX_DEPTH} levels")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise RowFault("duplicate-key", f"the key {twice!r} stands twice in one object")
    return out


def _constant(name: str) -> Any:
    raise RowFault("not-a-number", f"holds {name}, which is no JSON")


def _integer(text: str) -> int:
    if len(text) > 18 and not (len(text) <= 20 and -(2**63) <= int(text) < 2**64):
        raise RowFault("huge-number", f"holds a number of {len(text)} digits, beyond 64 bits; write it as a string")
    return int(text)


def _decimal(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise RowFault("huge-number", f"holds {text[:30]}, which is beyond any floating-point number")
    return value


_STRICT = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_decimal
)
