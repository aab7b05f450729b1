"""The folder is the registry: a plug-in is one file, its name the option's name, its fields the options.

A family is a folder whose `__init__` holds the contract (a class over `Plugin`) and whose other files hold one
plug-in each. Nothing is registered anywhere; listing a family reads file names only and imports nothing.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, SerializationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from tunesmith.core.aliases import ALIASES
from tunesmith.core.options import Options, parse
from tunesmith.core.problem import Problem, nearest

PACKAGE = Path(__file__).resolve().parent.parent

FAMILIES = {
    "format": "data/formats",
    "objective": "objectives",
    "method": "methods",
    "optimizer": "optimizers",
    "engine": "generate/engines",
    "reward": "rewards",
    "listener": "train/listeners",
    "metric": "evaluate/metrics",
    "merge": "merge/methods",
}
"""The families by the word that names one member, and the folder that is their registry."""


class Plugin(Options):
    """Base of every plug-in: a frozen set of options that knows its own name."""

    @classmethod
    def name(cls) -> str:
        """The name in run files: the file's name."""
        return cls.__module__.rpartition(".")[2]

    def spec(self) -> dict[str, dict[str, Any]]:
        """The plug-in as it stands in a run file: {name: options that differ from the defaults}."""
        return {self.name(): self.model_dump(mode="json", exclude_defaults=True)}


@cache
def names(family: str) -> tuple[str, ...]:
    """The members of a family, sorted: the file names of its folder."""
    folder = PACKAGE / FAMILIES[family]
    return tuple(sorted(file.stem for file in folder.glob("*.py") if not file.stem.startswith("_")))


def find(family: str, name: str) -> type[Plugin]:
    """The class of one member.

    Raises:
        Problem: there is no such member; the nearest name is in the hint.
    """
    if name not in names(family):
        raise Problem("", f"there is no {family} {name!r}", nearest(name, (*names(family), *ALIASES.get(family, ()))))
    module = importlib.import_module(f"tunesmith.{FAMILIES[family].replace('/', '.')}.{name}")
    own = [
        value
        for _, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, Plugin) and value.__module__ == module.__name__ and not value.__name__.startswith("_")
    ]
    if len(own) != 1:
        raise TypeError(f"{module.__name__} must hold exactly one public plug-in class, not {len(own)}")
    return own[0]


def build(family: str, value: Any) -> Plugin:
    """A member with its options, from `name`, `{name: options}` or the member itself.

    Raises:
        Problem: no such member, several members at once, or options that do not fit.
    """
    if isinstance(value, Plugin):
        return value
    if isinstance(value, str):
        value = {value: None}
    if not isinstance(value, Mapping) or len(cast("Mapping[Any, Any]", value)) != 1:
        raise Problem("", f"expected one {family}, as a name or as {{name: options}}; the value seen is {value!r}")
    name, options = next(iter(cast("Mapping[Any, Any]", value).items()))
    kind = find(family, str(name))
    return parse(kind, {} if options is None else options, str(name))


def doc(kind: type) -> str:
    """The help of a plug-in: its class docstring, then that of its file (formula, paper)."""
    module = inspect.getmodule(kind)
    parts = [inspect.getdoc(kind) or "", (inspect.getdoc(module) or "") if module else ""]
    return "\n\n".join(part for part in parts if part)


@dataclass(frozen=True)
class Member:
    """Annotation of a run's field: its value is one member of a family.

    `objective: Annotated[Plugin, Member("objective")]` reads `dpo` or `{dpo: {beta: 0.2}}`.
    """

    family: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(_serialise, info_arg=True),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        parts = [part for name in names(self.family) for part in self._member_schema(name)]
        for name, alias in ALIASES.get(self.family, {}).items():
            parts += self._member_schema(alias.plug, name, alias.help)
        return {"anyOf": parts}

    def _validate(self, value: Any) -> Plugin:
        try:
            return build(self.family, value)
        except Problem as problem:
            raise ValueError(problem) from problem

    def _member_schema(self, name: str, shown: str = "", summary: str = "") -> list[JsonSchemaValue]:
        """shown, summary: those of an alias, where they differ from the member's own."""
        kind = find(self.family, name)
        options = kind.model_json_schema()
        options = _written_out(options, options.pop("$defs", {}))
        first, shown = summary or doc(kind).partition("\n")[0], shown or name
        return [
            {"const": shown, "description": first},
            {
                "type": "object",
                "properties": {shown: {"anyOf": [options, {"type": "null"}]}},
                "required": [shown],
                "additionalProperties": False,
            },
        ]


def _written_out(part: Any, definitions: JsonSchemaValue) -> Any:
    """A schema whose references are what they refer to: pydantic finds none that a schema within a schema brings."""
    if isinstance(part, list):
        return [_written_out(inner, definitions) for inner in cast("list[Any]", part)]
    if not isinstance(part, dict):
        return part
    node = cast(JsonSchemaValue, part)
    referred: JsonSchemaValue = definitions[node["$ref"].rpartition("/")[2]] if "$ref" in node else {}
    whole = {**referred, **node}
    return {name: _written_out(inner, definitions) for name, inner in whole.items() if name != "$ref"}


def _serialise(value: Plugin, info: SerializationInfo) -> dict[str, Any]:
    return {value.name(): value.model_dump(mode=info.mode)}
