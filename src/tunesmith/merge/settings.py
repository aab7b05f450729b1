"""Parameters of a recipe as they are written, and their value for one tensor.

    0.5                             everywhere
    [0, 0.5, 1]                     a gradient over the layers of a slice
    {filter: mlp, value: ...}       for tensors with `mlp` in their name
    a list of such                  the first one whose filter fits

At layer i of n the place on a gradient is i / (n - 1), or 1 where a slice has one layer; embeddings, the last norm and
the head take its first number. Numbers between two points are interpolated, words and booleans are not. These are the
rules of mergekit's recipes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from tunesmith.core.problem import Problem

Scalar = bool | int | float | str


@dataclass(frozen=True)
class Rule:
    """A value for the tensors whose name holds `filter` (None or `*`: for all).

    value: one, or the points of a gradient; place: where it stands in the recipe, dotted.
    """

    filter: str | None
    value: Scalar | tuple[Scalar, ...]
    place: str

    def fits(self, tensor: str) -> bool:
        """Whether it is for this tensor."""
        return self.filter in (None, "*") or str(self.filter) in tensor

    def at(self, t: float, kind: TypeAdapter[Any]) -> Any:
        """The value at a place from 0 to 1 on its gradient.

        Raises:
            Problem: it is no value of this kind.
        """
        try:
            if not isinstance(self.value, tuple):
                return kind.validate_python(self.value)
            return _on_gradient([kind.validate_python(point) for point in self.value], t, kind)
        except ValidationError as error:
            raise Problem(self.place, f"{error.errors()[0]['msg']}; the value seen is {self.value!r}") from error


def _on_gradient(points: list[Any], t: float, kind: TypeAdapter[Any]) -> Any:
    where = t * (len(points) - 1)
    first = int(where)
    if any(isinstance(point, bool) or not isinstance(point, int | float) for point in points):
        return points[first]
    after = points[min(len(points) - 1, first + 1)]
    return kind.validate_python((1 - (where - first)) * points[first] + (where - first) * after)


@dataclass(eq=False)
class Level:
    """The parameters of one level of a recipe: its own, a slice's, or a model's.

    place: of the mapping, dotted; used: the places of the rules that some tensor took its value from.
    """

    place: str = ""
    rules: Mapping[str, Sequence[Rule]] = field(default_factory=dict[str, Sequence[Rule]])
    used: set[str] = field(default_factory=set[str])

    def value(self, name: str, tensor: str, t: float, kind: TypeAdapter[Any]) -> Any:
        """The value of a parameter for a tensor; None where this level says nothing about it.

        Raises:
            Problem: what is written is no value of this kind.
        """
        for rule in self.rules.get(name, ()):
            if rule.fits(tensor):
                self.used.add(rule.place)
                return rule.at(t, kind)
        return None

    def idle(self) -> Iterator[tuple[str, Rule]]:
        """The rules that no tensor took its value from, with their parameter."""
        for name, rules in self.rules.items():
            yield from ((name, rule) for rule in rules if rule.place not in self.used)


def look_up(levels: Iterable[Level], name: str, tensor: str, t: float, kind: TypeAdapter[Any]) -> Any:
    """The value from the nearest level that has one, nearest first; None where none has."""
    for level in levels:
        found = level.value(name, tensor, t, kind)
        if found is not None:
            return found
    return None


def read_level(value: Any, place: str, found: list[Problem]) -> Level:
    """The parameters of a mapping in a recipe; what is wrong with them is added to `found`."""
    if value is None:
        return Level(place)
    if not isinstance(value, Mapping):
        found.append(Problem(place, f"expected parameters by name; the value seen is {value!r}"))
        return Level(place)
    rules: dict[str, list[Rule]] = {}
    for name, written in cast("Mapping[str, Any]", value).items():
        rules[name] = list(_rules(written, f"{place}.{name}", found))
    return Level(place, rules)


def _rules(value: Any, place: str, found: list[Problem]) -> Iterator[Rule]:
    if isinstance(value, list) and any(isinstance(part, Mapping) for part in cast("list[Any]", value)):
        for number, part in enumerate(cast("list[Any]", value)):
            yield from _conditional(part, f"{place}.{number}", found)
    elif isinstance(value, Mapping):
        yield from _conditional(value, place, found)
    else:
        yield from _plain(None, value, place, found)


def _conditional(value: Any, place: str, found: list[Problem]) -> Iterator[Rule]:
    if not isinstance(value, Mapping) or "value" not in value or set(cast("Any", value)) - {"filter", "value"}:
        found.append(Problem(place, f"is {value!r}", "Write {filter: PART OF A NAME, value: NUMBER}"))
        return
    rule = cast("Mapping[str, Any]", value)
    if not isinstance(rule.get("filter"), str | None):
        found.append(Problem(f"{place}.filter", f"expected a text; the value seen is {rule['filter']!r}"))
        return
    yield from _plain(rule.get("filter"), rule["value"], place, found)


def _plain(filter_: str | None, value: Any, place: str, found: list[Problem]) -> Iterator[Rule]:
    points = cast("list[Any]", value) if isinstance(value, list) else [value]
    if not points or not all(isinstance(point, bool | int | float | str) for point in points):
        found.append(Problem(place, f"expected a value or a list of values; the value seen is {value!r}"))
        return
    yield Rule(filter_, tuple(points) if isinstance(value, list) else value, place)
