"""The options of a method for one tensor, from all levels of the recipe; and what of the recipe has no effect.

A value for one model is looked up at the model in its slice, then at the slice, then at the recipe; a value for all of
them at the slice, then at the recipe. Filters of the former see the tensor's name in that model, of the latter its name
in the result. What nobody gives has the method's default.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_args

from pydantic import TypeAdapter

from tunesmith.core.options import parse
from tunesmith.core.problem import Problem, Problems, nearest
from tunesmith.merge.methods import MergeMethod, OneEach
from tunesmith.merge.recipe import Recipe, Slice
from tunesmith.merge.settings import Level, look_up


@dataclass(frozen=True)
class Option:
    """An option of a method: its name in recipes, whether it has a value a model, its kind, and its default."""

    name: str
    each: bool
    required: bool
    default: Any
    kind: TypeAdapter[Any]


@cache
def options_of(method: type[MergeMethod]) -> tuple[Option, ...]:
    """The options of a method; the kind and default of one that has a value a model are those of one value."""
    found: list[Option] = []
    for name, about in method.model_fields.items():
        each = any(isinstance(mark, OneEach) for mark in about.metadata)
        value: Any = get_args(about.annotation)[0] if each else about.annotation
        kind: TypeAdapter[Any] = TypeAdapter(value if each else _with(value, about.metadata))
        required = about.is_required()
        default = None if required else about.default[0] if each else about.default
        found.append(Option(about.alias or name, each, required, default, kind))
    return tuple(found)


def _with(kind: Any, bounds: Sequence[Any]) -> Any:
    """A type with the bounds of its field."""
    for bound in bounds:
        kind = Annotated[kind, bound]
    return kind


@dataclass(frozen=True)
class Choices:
    """The levels of a recipe around one tensor; names: its name in each source."""

    recipe: Recipe
    slice: Slice
    tensor: str
    names: Sequence[str]
    base: int | None
    t: float

    def method(self, faults: list[Problem]) -> MergeMethod | None:
        """The method with the options of this tensor; faults are added, those that are known already once."""
        method = self.recipe.method
        values: dict[str, Any] = {}
        try:
            for option in options_of(method):
                values[option.name] = self._each(option) if option.each else self._shared(option)
            return parse(method, values, "")
        except Problem as fault:
            parts = fault.parts if isinstance(fault, Problems) else (fault,)
            known = {(other.where, other.what) for other in faults}
            placed = [Problem(self._place(part.where), part.what, part.hint) for part in parts]
            faults += [part for part in placed if (part.where, part.what) not in known]
            return None

    def _shared(self, option: Option) -> Any:
        return self._value(option, self.tensor, ())

    def _each(self, option: Option) -> tuple[Any, ...]:
        return tuple(
            self._value(option, name, (source.settings,))
            for number, (source, name) in enumerate(zip(self.slice.sources, self.names, strict=True))
            if number != self.base
        )

    def _value(self, option: Option, tensor: str, own: tuple[Level, ...]) -> Any:
        levels = (*own, self.slice.settings, self.recipe.settings)
        found = look_up(levels, option.name, tensor, self.t, option.kind)
        if found is not None:
            return found
        if option.required:
            place = own[0].place if own else "parameters"
            filtered = any(option.name in level.rules for level in levels)
            why = " for every tensor; add a value without a filter" if filtered else ""
            raise Problem(place, f"{self.recipe.method.name()} needs a value of {option.name}{why}")
        return option.default

    def _place(self, where: str) -> str:
        """The dotted place in the recipe of a fault in a method's own words."""
        where = where.lstrip(".")
        name = where.partition(".")[0]
        known = name in [option.name for option in options_of(self.recipe.method)]
        return f"parameters.{name}" if known else where


def check_idle(recipe: Recipe) -> Iterator[Problem]:
    """Parameters that no tensor took its value from, each with the reason."""
    options = {option.name: option for option in options_of(recipe.method)}
    apart = recipe.method.base != "none"
    for each in recipe.slices:
        for source in each.sources:
            for name in source.settings.rules:
                if name in options and not options[name].each:
                    what = f"{name} has one value for all models"
                    yield Problem(f"{source.settings.place}.{name}", what, "Move it to the recipe's parameters")
                elif name in options and apart and source.name == each.base:
                    yield Problem(f"{source.settings.place}.{name}", "has no effect on the base model", "Take it out")
    yield from _idle(recipe, options)


def _idle(recipe: Recipe, options: dict[str, Option]) -> Iterator[Problem]:
    for settings in dict.fromkeys(_levels(recipe)):
        for name, rule in settings.idle():
            if name not in options:
                what = f"{recipe.method.name()} has no option {name!r}"
                yield Problem(f"{settings.place}.{name}", what, nearest(name, options))
            elif _explained(recipe, settings, options[name]):
                continue
            elif rule.filter not in (None, "*"):
                what = f"no tensor takes its value from the filter {rule.filter!r}"
                yield Problem(rule.place, what, "It fits no name, or an earlier line fits first")
            else:
                yield Problem(rule.place, "has no effect: every tensor has a nearer value", "Take it out")


def _explained(recipe: Recipe, settings: Level, option: Option) -> bool:
    """Whether `check_idle` says why already."""
    for each in recipe.slices:
        for source in each.sources:
            if source.settings is settings:
                return not option.each or (recipe.method.base != "none" and source.name == each.base)
    return False


def _levels(recipe: Recipe) -> Iterator[Level]:
    yield recipe.settings
    for each in recipe.slices:
        yield each.settings
        yield from (source.settings for source in each.sources)
