"""Frozen options: the base of everything that can stand in a run file."""

from __future__ import annotations

from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from tunesmith.core.problem import Problem, nearest, raise_all

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
    return [_fault(details, where, known) for details in error.errors(include_url=False)]


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


def _fault(details: ErrorDetails, where: str, known: type[BaseModel]) -> Problem:
    inner = details.get("ctx", {}).get("error")
    place = ".".join([where, *(str(part) for part in details["loc"])]) if details["loc"] else where
    if isinstance(inner, Problem):
        return Problem(f"{place}.{inner.where}" if inner.where else place, inner.what, inner.hint)
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
