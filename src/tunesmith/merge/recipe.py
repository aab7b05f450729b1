"""Recipes: what is to be merged, and how, in the YAML of mergekit.

    file ─▶ documents ─▶ Recipe, Recipe … each stage after those whose names it uses; the last one is the result

`models: [...]` is one slice of all layers; a base model that is not among the models is added to them, as the last.
Every fault of a file is reported at once, each with its line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tunesmith.core.options import parse
from tunesmith.core.plugins import find
from tunesmith.core.problem import Problem, Problems, nearest, raise_all
from tunesmith.core.yaml_file import Places, parse_yaml, read_text
from tunesmith.merge.methods import MergeMethod
from tunesmith.merge.names import Name, read_name
from tunesmith.merge.settings import Level, read_level
from tunesmith.merge.tokens import TokenizerSpec

TYPES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Number types of weights, and their names in safetensors files."""

KEYS = (
    "models",
    "slices",
    "merge_method",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "name",
)


@dataclass(frozen=True)
class Source:
    """A model in a slice: its layers [first, end), None for all, and its own parameters."""

    name: Name
    layers: tuple[int, int] | None
    settings: Level
    place: str


@dataclass(frozen=True)
class Slice:
    """Some layers of the result, from the same number of layers of each source."""

    sources: tuple[Source, ...]
    base: Name | None
    settings: Level
    place: str


@dataclass(frozen=True)
class Recipe:
    """One merge. where: file and document, for faults; text: as it is written; lines: of its dotted places."""

    where: str
    text: str
    lines: Places
    stage: str | None
    method: type[MergeMethod]
    slices: tuple[Slice, ...]
    base: Name | None
    settings: Level
    dtype: str | None
    out_dtype: str | None
    tokenizer: TokenizerSpec | None
    chat_template: str | None

    @property
    def models(self) -> tuple[Name, ...]:
        """Every model once: the base first, then as they come."""
        named = (source.name for slice in self.slices for source in slice.sources)
        bases = (slice.base for slice in self.slices)
        return tuple(dict.fromkeys(name for name in (self.base, *named, *bases) if name is not None))

    def placed(self, fault: Problem) -> Problem:
        """The fault with its file and line instead of a dotted place alone."""
        return placed(fault, self.where, self.lines)


def read_recipes(path: Path) -> tuple[Recipe, ...]:
    """The recipes of a file in the order in which they are to be merged.

    Raises:
        Problem: the file cannot be read; `Problems` with every fault of it and its line.
    """
    found: list[Problem] = []
    recipes: list[Recipe] = []
    for text in _documents(read_text(path)):
        value, places = parse_yaml(text, str(path))
        faults: list[Problem] = []
        recipe = _recipe(value, str(path), text, places, faults)
        faults.sort(key=lambda fault: places.line(fault.where))
        found += [placed(fault, str(path), places) for fault in faults]
        recipes += [recipe] if recipe else []
    raise_all(str(path), found)
    if not recipes:
        raise Problem(str(path), "holds no recipe", "Write models (or slices) and merge_method")
    return _ordered(recipes)


def _documents(text: str) -> Iterator[str]:
    """The documents of a YAML stream, each with empty lines before it, so that lines keep their numbers."""
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if re.match(r"---(\s|$)", line)]
    for first, end in zip([-1, *starts], [*starts, len(lines)], strict=True):
        head = [] if first < 0 else ["   " + lines[first][3:]]
        body = [*head, *lines[first + 1 : end]]
        if any(line.strip() and not line.strip().startswith("#") for line in body):
            yield "\n" * max(first, 0) + "\n".join(body) + "\n"


def _recipe(value: Any, where: str, text: str, places: Places, found: list[Problem]) -> Recipe | None:
    if not isinstance(value, Mapping):
        found.append(Problem("", f"a recipe holds keys and values; the value seen is {value!r}"))
        return None
    keys = cast("Mapping[str, Any]", value)
    _check_keys(keys, "", KEYS, found)
    base = _name(keys.get("base_model"), "base_model", found) if keys.get("base_model") is not None else None
    recipe = Recipe(
        where,
        text.strip() + "\n",
        places,
        _text(keys, "name", found),
        _method(keys, found),
        tuple(_slices(keys, base, found)),
        base,
        read_level(keys.get("parameters"), "parameters", found),
        _type(keys, "dtype", found),
        _type(keys, "out_dtype", found),
        _tokenizer(keys, found),
        _template(keys, found),
    )
    _check_types(recipe, found)
    return recipe


def _check_keys(value: Mapping[str, Any], place: str, known: Sequence[str], found: list[Problem]) -> None:
    for key in value:
        inner = f"{place}.{key}" if place else key
        if key == "modules":
            found.append(Problem(inner, "recipes by module are not read here", "Write models or slices at the top"))
        elif key not in known:
            found.append(Problem(inner, "there is no such key", nearest(key, known)))


def _method(keys: Mapping[str, Any], found: list[Problem]) -> type[MergeMethod]:
    name = _text(keys, "merge_method", found)
    if name is None:
        found.append(Problem("merge_method", "is missing", "Say how to merge, for example merge_method: linear"))
        return MergeMethod
    try:
        return cast("type[MergeMethod]", find("merge", name))
    except Problem as fault:
        found.append(Problem("merge_method", f"there is no merge method {name!r}", fault.hint))
        return MergeMethod


def _slices(keys: Mapping[str, Any], base: Name | None, found: list[Problem]) -> Iterator[Slice]:
    given = [key for key in ("models", "slices") if keys.get(key)]
    if len(given) != 1:
        what = "models and slices are both given" if given else "neither models nor slices are given"
        found.append(Problem(given[-1] if given else "", what, "Give one of them"))
        return
    parts = keys[given[0]]
    if not isinstance(parts, list):
        found.append(Problem(given[0], f"expected a list; the value seen is {parts!r}"))
        return
    if given[0] == "models":
        sources = list(_sources(cast("list[Any]", parts), "models", found, layered=False))
        if base and base not in [source.name for source in sources]:
            sources.append(Source(base, None, Level("base_model"), "base_model"))
        yield Slice(tuple(sources), base, Level("models"), "models")
        return
    for number, part in enumerate(cast("list[Any]", parts)):
        yield _slice(part, f"slices.{number}", base, found)


def _slice(value: Any, place: str, base: Name | None, found: list[Problem]) -> Slice:
    if not isinstance(value, Mapping) or not isinstance(value.get("sources"), list) or not value["sources"]:  # pyright: ignore[reportUnknownMemberType]
        found.append(Problem(place, f"is {value!r}", "Write {sources: [{model: NAME, layer_range: [0, 8]}]}"))
        return Slice((), base, Level(place), place)
    keys = cast("Mapping[str, Any]", value)
    if keys.get("residual_weight") is not None:
        found.append(Problem(f"{place}.residual_weight", "has no effect, in mergekit neither", "Take it out"))
    _check_keys(keys, place, ("sources", "base_model", "parameters", "residual_weight"), found)
    own = keys.get("base_model")
    return Slice(
        tuple(_sources(keys["sources"], f"{place}.sources", found, layered=True)),
        base if own is None else _name(own, f"{place}.base_model", found),
        read_level(keys.get("parameters"), f"{place}.parameters", found),
        place,
    )


def _sources(parts: list[Any], place: str, found: list[Problem], *, layered: bool) -> Iterator[Source]:
    for number, part in enumerate(parts):
        here = f"{place}.{number}"
        if not isinstance(part, Mapping) or "model" not in part:
            found.append(Problem(here, f"is {part!r}", "Write {model: NAME}"))
            continue
        keys = cast("Mapping[str, Any]", part)
        _check_keys(keys, here, ("model", "parameters", *(["layer_range"] if layered else [])), found)
        layers = _range(keys.get("layer_range"), here, found) if layered else None
        settings = read_level(keys.get("parameters"), f"{here}.parameters", found)
        name = _name(keys["model"], f"{here}.model", found)
        if name is not None:
            yield Source(name, layers, settings, here)


def _range(value: Any, place: str, found: list[Problem]) -> tuple[int, int]:
    if isinstance(value, list) and len(cast("list[Any]", value)) == 2:
        first, end = cast("list[Any]", value)
        if type(first) is int and type(end) is int and 0 <= first < end:
            return first, end
    what = "is missing" if value is None else f"is {value!r}, not [FIRST, END] with 0 <= FIRST < END"
    found.append(Problem(f"{place}.layer_range", what, "Layers count from 0, and END is not among them"))
    return 0, 1


def _name(value: Any, place: str, found: list[Problem]) -> Name | None:
    try:
        return read_name(value, place)
    except Problem as fault:
        found.append(fault)
        return None


def _text(keys: Mapping[str, Any], key: str, found: list[Problem]) -> str | None:
    value = keys.get(key)
    if value is not None and (not isinstance(value, str) or not value.strip()):
        found.append(Problem(key, f"expected a text; the value seen is {value!r}"))
        return None
    return value


def _type(keys: Mapping[str, Any], key: str, found: list[Problem]) -> str | None:
    name = (_text(keys, key, found) or "").removeprefix("torch.")
    if name and name not in TYPES:
        found.append(Problem(key, f"{name!r} is no number type of weights", nearest(name, TYPES)))
        return None
    return TYPES.get(name)


def _template(keys: Mapping[str, Any], found: list[Problem]) -> str | None:
    text = _text(keys, "chat_template", found)
    if text is not None and text not in ("auto", "chatml") and "{" not in text:
        what = f"{text!r} is no chat template"
        found.append(Problem("chat_template", what, "Write auto (the most frequent one), chatml, or the Jinja text"))
    return text


def _check_types(recipe: Recipe, found: list[Problem]) -> None:
    narrow = recipe.dtype in ("BF16", "F16")
    if narrow and recipe.out_dtype and recipe.out_dtype != recipe.dtype:
        found.append(
            Problem("dtype", "has no effect beside out_dtype: sums are never narrower than float32", "Take it out")
        )


def _tokenizer(keys: Mapping[str, Any], found: list[Problem]) -> TokenizerSpec | None:
    source, whole = keys.get("tokenizer_source"), keys.get("tokenizer")
    if source is not None and whole is not None:
        found.append(Problem("tokenizer_source", "stands beside tokenizer, which says the same", "Keep one of them"))
    if source is None and whole is None:
        return None
    try:
        place, value = ("tokenizer", whole) if whole is not None else ("tokenizer_source", {"source": source})
        return parse(TokenizerSpec, value, place)
    except Problem as fault:
        found += fault.parts if isinstance(fault, Problems) else (fault,)
        return None


def _ordered(recipes: list[Recipe]) -> tuple[Recipe, ...]:
    """Each stage after those it takes, the result last."""
    for number, recipe in enumerate(recipes):
        if recipe.stage in [other.stage for other in recipes[:number]]:
            what = f"two stages are called {recipe.stage!r}" if recipe.stage else "two merges have no name"
            raise recipe.placed(Problem("name", what, "Give each stage a name of its own, and none to the last"))
    by_stage = {recipe.stage: recipe for recipe in recipes if recipe.stage}
    used = {name.path for recipe in recipes for name in recipe.models if name.path in by_stage}
    last = [recipe for recipe in recipes if recipe.stage not in used]
    if len(last) != 1:
        whole = ", ".join(str(recipe.stage or "the one without a name") for recipe in last) or "none"
        what = f"the stages must come to one result; not used by another stage: {whole}"
        raise Problem(recipes[0].where, what, "Remove what is not used, or write one file a result")
    ordered: list[Recipe] = []
    _take(last[0], by_stage, ordered, ())
    return tuple(ordered)


def _take(recipe: Recipe, stages: Mapping[str, Recipe], ordered: list[Recipe], above: tuple[str, ...]) -> None:
    for name in recipe.models:
        if name.path not in stages or stages[name.path] in ordered:
            continue
        if name.path in (*above, recipe.stage):
            raise recipe.placed(Problem("name", f"the stage {name.path!r} takes its own result", "Break the circle"))
        _take(stages[name.path], stages, ordered, (*above, recipe.stage or ""))
    ordered.append(recipe)


def placed(fault: Problem, where: str, lines: Places) -> Problem:
    """A fault with its file and line instead of a dotted place alone."""
    line = lines.line(fault.where)
    file = f"{where}:{line}" if line else where
    if isinstance(fault, Problems):
        return Problems(file, [placed(part, where, lines) for part in fault.parts])
    return Problem(f"{file}: {fault.where}" if fault.where else file, fault.what, fault.hint)
