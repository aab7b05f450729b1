"""The parts of a row as formats read them: present or not, of the right type, not empty."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from tunesmith.data.formats import Row, RowFault

ANSWERS = ("output", "completion", "response")
"""Columns that may hold an answer as one string, in the order they are looked for."""
QUESTIONS = ("instruction", "prompt")
"""Columns that may hold a question as one string."""
CHATS = ("messages", "conversations")
"""Columns that may hold a list of turns."""
KEYS = ("answer", "solution", "ground_truth", "key")
"""Columns that may hold what an answer to a prompt is checked against, in the order they are looked for."""


def given(row: Row, part: str) -> bool:
    """Whether a row holds a part; null is absent, as tables fill what a row lacks with null."""
    return row.get(part) is not None


def first_given(row: Row, parts: Sequence[str]) -> str | None:
    """The first of these parts that the row holds."""
    return next((part for part in parts if given(row, part)), None)


def kind_of(value: Any) -> str:
    """The type of a value in words, with the value where it is short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"a number ({value})"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, (list, tuple)) else f"a {type(value).__name__}"


def string(row: Row, part: str) -> str:
    """A part that must be a string; it may be empty.

    Raises:
        RowFault: missing, or of another type.
    """
    if part not in row:
        raise RowFault("missing-part", f"`{part}` is missing")
    return as_string(row[part], part)


def as_string(value: Any, part: str) -> str:
    """A value that must be a string, called `part` in the fault."""
    if not isinstance(value, str):
        raise RowFault("wrong-type", f"`{part}` is {kind_of(value)}; it must be a string")
    return value


def optional(row: Row, part: str) -> str:
    """A part that is a string, or "" where it is absent or null."""
    return string(row, part) if given(row, part) else ""


def filled(row: Row, part: str, reason: str) -> str:
    """A part that must be a string with something in it; `reason` names the fault of an empty one."""
    value = string(row, part)
    if not value.strip():
        raise RowFault(reason, f"`{part}` is empty")
    return value


def written(value: Any, part: str, empty: str = "empty-output") -> str:
    """A label, a tag or a key as text: a string, a number, true or false; `empty` names the fault of nothing."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if not isinstance(value, (str, int, float)):
        raise RowFault("wrong-type", f"`{part}` is {kind_of(value)}; it must be a string, a number, true or false")
    if not str(value).strip():
        raise RowFault(empty, f"`{part}` is empty")
    return str(value).strip()


def as_list(value: Any, part: str) -> list[Any]:
    """A value that must be a list, called `part` in the fault."""
    if not isinstance(value, (list, tuple)):
        raise RowFault("wrong-type", f"`{part}` is {kind_of(value)}; it must be a list")
    return list(cast("Sequence[Any]", value))


def as_object(value: Any, part: str) -> Mapping[str, Any]:
    """A value that must be an object, called `part` in the fault."""
    if not isinstance(value, Mapping):
        raise RowFault("wrong-type", f"`{part}` is {kind_of(value)}; it must be an object")
    return cast("Mapping[str, Any]", value)


def from_json(value: Any, part: str, reason: str) -> Any:
    """A value that may be written as JSON inside a string."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowFault(reason, f"`{part}` is a string that is no JSON ({error})") from error


def truth(value: Any) -> bool | None:
    """The truth value of a rating: true, false, or one of these words, as tables write them; else None."""
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else None


def rating(row: Row) -> str | None:
    """The column that rates an answer: `kto_tag`, or `label` where it is true or false."""
    if given(row, "kto_tag"):
        return "kto_tag"
    return "label" if truth(row.get("label")) is not None else None
