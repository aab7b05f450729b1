"""Frozen options: the base of everything that can stand in a run file."""

from __future__ import annotations

from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from tunesmith.core.problem import Problem, Problems, nearest, raise_all

T = TypeVar("T", bound="Options")


class Options(BaseModel):
    """A frozen value whose field docstrings are the help a user reads; unknown fields are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, protected_namespaces=()
    )


def faults(error: ValidationError, where: str, known: type[BaseModel]) -> list[Problem]:
    """Turn pydantic's errors into Problems, each with its dotted place and the nearest known name.

    where: the place of the whole value; known: its class, to look names up in.
    """
    found = [details for details in error.errors(include_url=False) if not _follows(details, error)]
    return [fault for details in found for fault in _faults(details, where, known)]


def parse(kind: type[T], value: Any, where: str) -> T:
    """Build `kind` from plain data or raise every fault at once.

    Raises:
        Problem: the value does not fit; `Problems` when several things are wrong.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise_all(where, faults(error, where, kind))
        raise


def _follows(details: ErrorDetails, error: ValidationError) -> bool:
    """Whether a list only counts as too short because its items are faulty, which is told already."""
    if details["type"] != "too_short":
        return False
    place = details["loc"]
    return any(other["loc"][: len(place)] == place and other["loc"] != place for other in error.errors())


def _faults(details: ErrorDetails, where: str, known: type[BaseModel]) -> list[Problem]:
    place = ".".join([where, *(str(part) for part in details["loc"])]) if details["loc"] else where
    raised: Any = details.get("ctx", {}).get("error")
    inner: Any = raised.args[0] if isinstance(raised, ValueError) and raised.args else raised
    if isinstance(inner, Problem):
        parts = inner.parts if isinstance(inner, Problems) else (inner,)
        return [Problem(f"{place}.{part.where}" if part.where else place, part.what, part.hint) for part in parts]
    return [_fault(details, place, known)]


def _fault(details: ErrorDetails, place: str, known: type[BaseModel]) -> Problem:
    if details["type"] == "extra_forbidden":
        name = str(details["loc"][-1])
        return Problem(place, "there is no such option", nearest(name, _fields_at(known, details["loc"][:-1])))
    if details["type"] == "missing":
        return Problem(place, "this option is required and has no value", "Give it a value")
    return Problem(place, f"{details['msg']}; the value seen is {details['input']!r}")


def _fields_at(known: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    for part in loc:
        field = known.model_fields.get(str(part))
        inner = _model_in(field.annotation) if field else None
        if isinstance(part, int):
            continue
        if inner is None:
            return []
        known = inner
    return list(known.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        found = _model_in(inner)
        if found is not None:
            return found
    return None
