"""The manual of run files: every option and plug-in with its help, from the schema that ships; imports no plug-in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tunesmith.core import schema
from tunesmith.core.plugins import FAMILIES

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its name, what it may be in words, its help, and its default where it has one."""

    name: str
    type: str
    help: str
    default: Any = None
    required: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """One plug-in of a family."""

    family: str
    name: str
    summary: str
    doc: str
    options: tuple[Option, ...]


class Manual:
    """All that can stand in a run file."""

    def __init__(self, value: Json) -> None:
        self._value = value

    @classmethod
    def shipped(cls) -> Manual:
        """The manual from the schema that ships with the package."""
        return cls(schema.load())

    @cached_property
    def fields(self) -> dict[str, Option]:
        """The top level of a run file."""
        parts: Json = self._value["properties"]
        required = self._value.get("required", ())
        return {name: self._option(name, part, name in required) for name, part in parts.items()}

    @cached_property
    def sections(self) -> dict[str, tuple[Option, ...]]:
        """The options of `model`, `data`, `validation` and `train`."""
        found = {name: self._definition(part) for name, part in self._value["properties"].items()}
        return {name: tuple(self._options(inner)) for name, inner in found.items() if inner is not None}

    @cached_property
    def families(self) -> dict[str, tuple[Member, ...]]:
        """Every plug-in by its family."""
        listed: Json = self._value["x-plugins"]
        return {
            family: tuple(_member(family, name, told) for name, told in listed[family].items()) for family in FAMILIES
        }

    def member(self, family: str, name: str) -> Member | None:
        """One plug-in, or None."""
        return next((member for member in self.families.get(family, ()) if member.name == name), None)

    def _definition(self, part: Json) -> Json | None:
        """The definition that a field's value has, looked for in references, choices and lists."""
        if "$ref" in part:
            return self._value["$defs"][part["$ref"].rpartition("/")[2]]
        for inner in (*part.get("anyOf", ()), *part.get("allOf", ()), part.get("items") or {}):
            found = self._definition(inner) if inner else None
            if found is not None:
                return found
        return None

    def _options(self, definition: Json) -> Iterator[Option]:
        required = definition.get("required", ())
        for name, part in definition["properties"].items():
            yield self._option(name, part, name in required)

    def _option(self, name: str, part: Json, required: bool) -> Option:
        words = schema.in_words(part, self._value["$defs"])
        if name == "listeners":
            words = "list of listeners"
        text = part.get("description") or (self._definition(part) or {}).get("description", "")
        return Option(name, words, " ".join(text.split()), part.get("default"), required)


def _member(family: str, name: str, told: Json) -> Member:
    options = (
        Option(each, part["type"], part["help"], part.get("default"), "default" not in part)
        for each, part in told["options"].items()
    )
    return Member(family, name, told["summary"], told["doc"], tuple(options))
