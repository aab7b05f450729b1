"""The schema: everything a run file may say, as one JSON file that ships with the package.

    Run and every plug-in ─▶ generate() ─▶ schema.json ─▶ load() ─▶ editors · `tunesmith explain` · web forms

Editors complete YAML from it. Under `x-plugins` it also holds the help of each plug-in, so that those who only explain
need not import what they explain (and with it torch). `python -m tunesmith.core.schema` writes it anew; a test
compares the shipped file with a fresh one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

from tunesmith.core.plugins import FAMILIES, PACKAGE, Plugin, doc, find, names
from tunesmith.core.run import Run
from tunesmith.core.rundir import write_json

SHIPPED = PACKAGE / "schema.json"

Json = dict[str, Any]


def generate() -> Json:
    """The JSON schema of a run file, with the help of every plug-in under `x-plugins`; imports every plug-in."""
    schema = Run.model_json_schema()
    definitions: Json = schema.pop("$defs", {})
    _hoist(schema, definitions)
    for inner in list(definitions.values()):
        _hoist(inner, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "$defs": dict(sorted(definitions.items())),
        "x-plugins": {family: {name: explain(find(family, name)) for name in names(family)} for family in FAMILIES},
    }


def load() -> Json:
    """The schema that ships with the package; imports no plug-in."""
    return json.loads(SHIPPED.read_text("utf-8"))


def explain(kind: type[Plugin]) -> Json:
    """The help of one plug-in as plain data.

    `summary` is its first line and `doc` all of it; `options` has `type`, `help` and, unless the option is required,
    `default` of each option.
    """
    text = doc(kind)
    return {"summary": text.partition("\n")[0], "doc": text, "options": _options(kind)}


def _options(kind: type[Plugin]) -> Json:
    schema = kind.model_json_schema()
    properties: Json = schema.get("properties", {})
    return {name: _option(part, schema.get("$defs", {})) for name, part in properties.items()}


def _option(part: Json, definitions: Json) -> Json:
    told = {"type": in_words(part, definitions), "help": " ".join(part.get("description", "").split())}
    return told | ({"default": part["default"]} if "default" in part else {})


def in_words(part: Json, definitions: Json) -> str:
    """What a value may be, for people: `int > 0`, `zero | pissa`, `list of str`."""
    if "$ref" in part:
        return in_words(definitions[part["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in part:
        return " | ".join(dict.fromkeys(in_words(choice, definitions) for choice in part["anyOf"]))
    if "enum" in part:
        return " | ".join(str(value) for value in part["enum"])
    if "const" in part:
        return str(part["const"])
    if part.get("type") == "array":
        return f"list of {in_words(part['items'], definitions)}" if "items" in part else "list"
    word = _TYPES.get(part.get("type", ""), "any value")
    return " ".join([word, ", ".join(_bounds(part))]).strip()


_TYPES = {"integer": "int", "number": "float", "string": "str", "boolean": "bool", "null": "null", "object": "mapping"}
_BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


def _bounds(part: Json) -> Iterator[str]:
    for key, sign in _BOUNDS.items():
        if key in part:
            yield f"{sign} {part[key]}"


def _hoist(part: Any, definitions: Json) -> None:
    """Move the definitions that plug-ins bring along to the root, where their references look for them."""
    if isinstance(part, list):
        for inner in cast("list[Any]", part):
            _hoist(inner, definitions)
    if not isinstance(part, dict):
        return
    node = cast(Json, part)
    for name, definition in node.pop("$defs", {}).items():
        if definitions.setdefault(name, definition) != definition:
            raise TypeError(f"two options are called {name}; give one of them another name")
        _hoist(definition, definitions)
    for inner in node.values():
        _hoist(inner, definitions)


def main() -> None:
    """Write the shipped schema anew."""
    write_json(SHIPPED, generate())


if __name__ == "__main__":
    main()
