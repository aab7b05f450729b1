"""How recipes name models:  PATH · ORG/NAME · builtin:NAME · a stage's name, each with @REVISION and +ADAPTER."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tunesmith.core.problem import Problem


@dataclass(frozen=True)
class Name:
    """A model, perhaps with an adapter on it, as a recipe writes it."""

    path: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None

    def __str__(self) -> str:
        base = f"{self.path}@{self.revision}" if self.revision else self.path
        if self.adapter is None:
            return base
        return f"{base}+{self.adapter}" + (f"@{self.adapter_revision}" if self.adapter_revision else "")


def read_name(value: Any, place: str) -> Name:
    """The model that a recipe names, as a text or as {model: {path, revision}, lora: {path, revision}}.

    Raises:
        Problem: it names none, or more than a model and an adapter.
    """
    if isinstance(value, str) and value.strip():
        return _from_text(value.strip(), place)
    if isinstance(value, Mapping):
        return _from_parts(cast("Mapping[str, Any]", value), place)
    raise Problem(place, f"expected the name of a model; the value seen is {value!r}")


def _from_text(text: str, place: str) -> Name:
    if Path(text).expanduser().is_dir():  # folders may have + and @ in their names
        return Name(text)
    model, plus, adapter = text.partition("+")
    if "+" in adapter or (plus and not (model and adapter)):
        raise Problem(place, f"{text!r} is not MODEL or MODEL+ADAPTER")
    path, revision = _at(model, place)
    if not plus:
        return Name(path, revision)
    return Name(path, revision, *_at(adapter, place))


def _at(text: str, place: str) -> tuple[str, str | None]:
    if Path(text).expanduser().is_dir():
        return text, None
    path, at, revision = text.partition("@")
    if not path or "@" in revision or (at and not revision):
        raise Problem(place, f"{text!r} is not NAME or NAME@REVISION")
    return path, revision or None


def _from_parts(parts: Mapping[str, Any], place: str) -> Name:
    if parts.get("override_architecture") is not None:
        raise Problem(
            f"{place}.override_architecture", "has no effect: names of tensors are read from the files", "Take it out"
        )
    if "path" in parts:
        return Name(*_path(parts, place))
    if "model" not in parts or set(parts) - {"model", "lora", "override_architecture"}:
        raise Problem(place, f"expected a model's name; the value seen is {dict(parts)!r}")
    inner = parts.get("lora")
    adapter = (None, None) if inner is None else _path(inner, f"{place}.lora")
    return Name(*_path(parts["model"], f"{place}.model"), *adapter)


def _path(value: Any, place: str) -> tuple[str, str | None]:
    if isinstance(value, str):
        return _at(value, place)
    parts = cast("Mapping[str, Any]", value if isinstance(value, Mapping) else {})
    path, revision = parts.get("path"), parts.get("revision")
    if not isinstance(path, str) or not isinstance(revision, str | None) or set(parts) - {"path", "revision"}:
        raise Problem(place, f"expected {{path, revision}}; the value seen is {value!r}")
    return path, revision
