"""YAML that is data only: no tags, no aliases, no key twice, and the line of every value is known."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from tunesmith.core.problem import Problem

MAX_BYTES = 1_000_000
MAX_DEPTH = 50


@dataclass(frozen=True, slots=True)
class Places:
    """Lines (from 1) of values by their dotted path."""

    lines: dict[str, int] = field(default_factory=dict[str, int])

    def line(self, dotted: str) -> int:
        """The line of a value, or of the nearest value around it; 0 where nothing is known."""
        while dotted and dotted not in self.lines:
            dotted = dotted.rpartition(".")[0]
        return self.lines.get(dotted, 0)


def read_yaml(path: Path) -> tuple[Any, Places]:
    """The value in a YAML file and the places of its parts.

    Raises:
        Problem: not there, not UTF-8, not YAML, or YAML with tags, aliases or a key twice.
    """
    return parse_yaml(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The text of a YAML file.

    Raises:
        Problem: not there, too large, or not UTF-8.
    """
    try:
        raw = _read(path)
    except OSError as error:
        raise Problem(str(path), f"cannot be read ({error.strerror})", "Check the path") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Problem(str(path), f"is not UTF-8 (byte {error.start})", "Save it as UTF-8") from error


def _read(path: Path) -> bytes:
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise Problem(str(path), "is no regular file", "Give a YAML file")
    if about.st_size > MAX_BYTES:
        raise Problem(str(path), f"has {about.st_size:,} bytes; a YAML file of options has at most {MAX_BYTES:,}")
    return path.read_bytes()


def parse_yaml(text: str, where: str) -> tuple[Any, Places]:
    """The value of a YAML text; `where` names it in faults.

    Raises:
        Problem: as `read_yaml`.
    """
    places = Places()
    try:
        _refuse_more_than_data(text, where)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return (None if node is None else _value(node, "", places, where)), places
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise Problem(f"{where}{line}", f"is not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise Problem(where, f"is not YAML: {type(error).__name__}") from error


def assign(value: Any, change: str) -> None:
    """Apply `a.b=c` to plain data, in place; c is read as YAML.

    A plug-in named by a bare word becomes the head of its options: `objective.dpo.beta=0.2` after
    `objective: dpo` sets beta of dpo, and `method=lora` replaces the method.

    Raises:
        Problem: no `=`, or a path through something that has no parts.
    """
    dotted, equals, text = change.partition("=")
    if not equals or not dotted.strip():
        raise Problem(change, "is not a change", "Write it as name.name=value, for example train.epochs=3")
    parsed, _ = parse_yaml(text, change)
    *path, last = dotted.strip().split(".")
    for part in path:
        value = _step(value, part, change)
    if _is_list(value):
        value[_index(value, last, change)] = parsed
    elif _is_mapping(value):
        value[last] = parsed
    else:
        raise Problem(change, f"{value!r} has no part {last!r}")


def _step(value: Any, part: str, change: str) -> Any:
    if _is_list(value):
        return value[_index(value, part, change)]
    if not _is_mapping(value):
        raise Problem(change, f"{value!r} has no part {part!r}")
    inner = value.get(part)
    if inner is None or isinstance(inner, str):
        value[part] = {inner: {}} if inner else {}
    return value[part]


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _is_mapping(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _index(value: list[Any], part: str, change: str) -> int:
    if not part.isdigit() or int(part) >= len(value):
        raise Problem(change, f"{part!r} is not a number from 0 to {len(value) - 1}")
    return int(part)


def _refuse_more_than_data(text: str, where: str) -> None:
    """Refuse tags, anchors, aliases and deep nesting, before anything is built from them."""
    depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        place = f"{where}:{token.start_mark.line + 1}"
        if isinstance(token, (yaml.AliasToken, yaml.AnchorToken, yaml.TagToken)):
            name = type(token).__name__.removesuffix("Token").lower()
            raise Problem(place, f"has a YAML {name}, and options are plain data", "Write it out")
        depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
        if depth > MAX_DEPTH:
            raise Problem(place, f"is YAML nested more than {MAX_DEPTH} deep, and options are not")


_OPENING = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
_CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)


def _value(node: yaml.Node, dotted: str, places: Places, where: str) -> Any:
    places.lines[dotted] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            if key in out:
                raise Problem(f"{where}:{line}", f"the key {key!r} stands twice", "Keep one of them")
            inner = f"{dotted}.{key}" if dotted else key
            out[key] = _value(value_node, inner, places, where)
            places.lines[inner] = line
        return out
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, f"{dotted}.{i}" if dotted else str(i), places, where) for i, item in enumerate(node.value)]
    return _scalar(node, f"{where}:{node.start_mark.line + 1}")


def _scalar(node: yaml.Node, where: str) -> Any:
    try:
        return yaml.SafeLoader("").construct_object(node)  # pyright: ignore[reportUnknownMemberType]
    except (ValueError, OverflowError) as error:
        shown = str(node.value)[:40]
        raise Problem(where, f"{shown!r} looks like a date or a number and is none", "Put it in quotes") from error
