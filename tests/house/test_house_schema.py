"""The shipped schema is the one that the code says, it holds together, and it is help enough."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from tunesmith.core import schema
from tunesmith.core.options import Options
from tunesmith.core.plugins import FAMILIES, Plugin, names


@pytest.fixture(scope="module")
def fresh() -> dict[str, Any]:
    return schema.generate()


def nodes(part: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a JSON value."""
    if isinstance(part, dict):
        yield part
        for inner in part.values():
            yield from nodes(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from nodes(inner)


def test_shipped_is_fresh(fresh: dict[str, Any]) -> None:
    assert schema.load() == json.loads(json.dumps(fresh)), "write it anew: python -m tunesmith.core.schema"


def test_every_reference_leads_somewhere(fresh: dict[str, Any]) -> None:
    run_file = {key: value for key, value in fresh.items() if key != "x-plugins"}
    references = {node["$ref"] for node in nodes(run_file) if "$ref" in node}
    assert references == {f"#/$defs/{name}" for name in fresh["$defs"]}


def test_every_plugin_is_in_it(fresh: dict[str, Any]) -> None:
    assert {family: tuple(members) for family, members in fresh["x-plugins"].items()} == {
        family: names(family) for family in FAMILIES
    }


def test_every_plugin_and_option_has_help(fresh: dict[str, Any]) -> None:
    for members in fresh["x-plugins"].values():
        for name, member in members.items():
            assert member["summary"].endswith("."), name
            assert all(option["help"] and option["type"] for option in member["options"].values()), name


def test_short_forms_are_allowed(fresh: dict[str, Any]) -> None:
    fields = fresh["properties"]
    assert {"type": "string"} in fields["model"]["anyOf"]
    assert {"type": "string"} in fields["data"]["anyOf"]
    assert fields["method"]["default"] in {choice.get("const") for choice in fields["method"]["anyOf"]}


class Start(Options):
    """Where to begin."""

    seed: int = 0
    """The draw follows from it."""


class Example(Plugin):
    """An example. It has more to say."""

    rank: Annotated[int, Field(gt=0, le=8)] = 4
    """How many,
    in two lines."""
    start: Literal["zero", "pissa"] = "zero"
    """First values."""
    names: tuple[str, ...] | None = None
    """Which ones."""
    inner: Start = Start()
    """A value of several parts."""
    path: str
    """It has no default."""


def test_explain_says_type_default_and_help() -> None:
    told = schema.explain(Example)
    assert told["summary"] == "An example. It has more to say."
    assert told["options"] == {
        "rank": {"type": "int > 0, <= 8", "help": "How many, in two lines.", "default": 4},
        "start": {"type": "zero | pissa", "help": "First values.", "default": "zero"},
        "names": {"type": "list of str | null", "help": "Which ones.", "default": None},
        "inner": {"type": "mapping", "help": "A value of several parts.", "default": {"seed": 0}},
        "path": {"type": "str", "help": "It has no default."},
    }
