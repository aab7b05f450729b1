"""What every format keeps: its own examples read, its own rows are found as its own, and no row makes it crash."""

from __future__ import annotations

import inspect
import itertools
import json
import re
from typing import Any

import pytest

from tunesmith.core.plugins import build, names
from tunesmith.core.records import KINDS, Place
from tunesmith.data.formats import Format, RowFault

PLACE = Place("rows.jsonl", 7, 99)
ODD_VALUES: list[Any] = [
    None,
    True,
    3,
    2.5,
    "",
    " ",
    "word",
    [],
    {},
    [None],
    [[]],
    [{}],
    {"role": 3},
    ["a"],
    [["a", 1]],
]
FORMATS = names("format")


def format_of(name: str) -> Format:
    found = build("format", name)
    assert isinstance(found, Format)
    return found


def examples(name: str) -> list[dict[str, Any]]:
    """The rows that the docstring of the format's file shows, as JSON at the start of a line."""
    module = inspect.getmodule(type(format_of(name)))
    text = (module.__doc__ if module else None) or ""
    rows: list[dict[str, Any]] = []
    end = 0
    for start in re.finditer(r"^ *(?={)", text, re.MULTILINE):
        if start.end() >= end:
            value, end = json.JSONDecoder().raw_decode(text, start.end())
            rows.append(value)
    return rows


@pytest.mark.parametrize("name", FORMATS)
class TestFormat:
    def test_says_what_it_is(self, name: str) -> None:
        own = format_of(name)
        assert own.yields in KINDS
        assert own.columns
        assert all(help_text for help_text in own.columns.values())
        assert all(field.description for field in type(own).model_fields.values())

    def test_reads_the_examples_of_its_own_page(self, name: str) -> None:
        rows = examples(name)
        assert rows
        for row in rows:
            record = format_of(name).read(row, PLACE)
            assert type(record) is format_of(name).yields
            assert record.place == PLACE

    def test_its_examples_match_it_and_nothing_else(self, name: str) -> None:
        for row in examples(name):
            assert [other for other in FORMATS if format_of(other).matches(row)] == [name]

    def test_null_in_a_part_that_may_be_absent_is_the_same_as_absent(self, name: str) -> None:
        for row in examples(name):
            absent = {part: None for part in format_of(name).columns if part not in row}
            assert format_of(name).matches({**row, **absent}) == format_of(name).matches(row)
            assert format_of(name).read({**row, **absent}, PLACE) == format_of(name).read(row, PLACE)

    def test_other_columns_change_nothing(self, name: str) -> None:
        for row in examples(name):
            more = {**row, "id": 5, "source": {"url": "x"}, "lang": None}
            assert format_of(name).read(more, PLACE) == format_of(name).read(row, PLACE)
            assert format_of(name).matches(more)

    def test_no_value_of_a_part_makes_it_crash(self, name: str) -> None:
        own = format_of(name)
        for row, part, value in itertools.product(examples(name), own.columns, ODD_VALUES):
            odd = {**row, part: value}
            own.matches(odd)
            try:
                assert isinstance(own.read(odd, PLACE), own.yields)
            except RowFault as fault:
                assert fault.reason
                assert len(str(fault)) > 10

    def test_no_value_inside_of_turns_makes_it_crash(self, name: str) -> None:
        own = format_of(name)
        for row in examples(name):
            for path, value in itertools.product(list(paths(row)), ODD_VALUES):
                odd = replaced(row, path, value)
                own.matches(odd)
                try:
                    assert isinstance(own.read(odd, PLACE), own.yields)
                except RowFault as fault:
                    assert fault.reason

    def test_an_empty_row_is_a_fault(self, name: str) -> None:
        with pytest.raises(RowFault):
            format_of(name).read({}, PLACE)
        assert format_of(name).matches({}) is None


def paths(value: Any, path: tuple[Any, ...] = ()) -> Any:
    """The paths to every value inside of a value."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*path, key))


def replaced(row: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of a row with another value at a path."""
    copy = json.loads(json.dumps(row))
    at = copy
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return copy
