"""Which tensors the merged model has, and what each is made of.

    recipe + models ─▶ embeddings from the first slice · layers, renumbered · norm and head from the last ─▶ Piece, …

Each piece knows its name, shape and type, the tensors that go into it, and the method with the options that the recipe
gives this very tensor. All that can be wrong is found here, before a weight is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from tunesmith.core.problem import Problem, raise_all
from tunesmith.merge.choices import Choices, check_idle
from tunesmith.merge.inputs import EMBEDDINGS, HEADS, Model
from tunesmith.merge.methods import MergeMethod
from tunesmith.merge.names import Name
from tunesmith.merge.numbers import FLOATS, STORED, promoted
from tunesmith.merge.recipe import Recipe, Slice, Source
from tunesmith.merge.tokens import Vocabulary

BLOCK = 1 << 16
"""Numbers of one tensor in a block, to whole rows: what is computed with stays in the processor's cache. Random draws
are made block by block, so another size gives another draw."""

MANY = 20
"""Faults that are told one by one: what is wrong with one layer is often wrong with all."""

FIRST = (*EMBEDDINGS, "embed", "wte", "wpe", "embeddings")
"""Tensors outside the layers whose names hold one of these come before the layers, all others after them."""


@dataclass(frozen=True)
class Part:
    """One tensor that goes into a piece: the number of its model, and its name there."""

    model: int
    name: str


@dataclass(frozen=True)
class Piece:
    """One tensor of the merged model.

    parts: in the recipe's order; base: the place among them of a base that is set apart; method: with its options, None
    where bits are copied; kind: what sums are in; vocabulary: whether it has a row a token.
    """

    name: str
    shape: tuple[int, ...]
    stored: str
    parts: tuple[Part, ...]
    base: int | None
    method: MergeMethod | None
    kind: type[np.floating[Any]]
    vocabulary: bool = False

    @cached_property
    def block_rows(self) -> int:
        """Rows in one block; a tensor of one axis is one row."""
        return 1 if len(self.shape) < 2 else max(1, BLOCK // max(1, math.prod(self.shape[1:])))

    @cached_property
    def blocks(self) -> int:
        """How many blocks it has."""
        return 1 if len(self.shape) < 2 else -(-self.shape[0] // self.block_rows)

    def span(self, number: int) -> tuple[int, int]:
        """The rows [first, end) of a block."""
        first = number * self.block_rows
        return first, 1 if len(self.shape) < 2 else min(first + self.block_rows, self.shape[0])

    @cached_property
    def bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(STORED[self.stored]).itemsize


@dataclass(frozen=True)
class Wanted:
    """A tensor of the result before its parts are looked at: t is its place on gradients."""

    name: str
    slice: Slice
    parts: tuple[Part, ...]
    t: float = 0.0


@dataclass
class Layout:
    """The pieces of a recipe over its models; what is wrong is gathered in `faults`."""

    recipe: Recipe
    models: Sequence[Model]
    vocabulary: Vocabulary | None = None
    faults: list[Problem] = field(default_factory=list[Problem])

    def pieces(self) -> tuple[Piece, ...]:
        """Every tensor of the merged model, in the order of its files.

        Raises:
            Problem: models that do not fit together, or options that do not fit the method; all faults at once.
        """
        self._check_slices()
        self._raise()
        made = [piece for wanted in self._wanted() if (piece := self._piece(wanted)) is not None]
        self._raise()
        self.faults += check_idle(self.recipe)
        self._raise()
        return tuple(made)

    @property
    def layers(self) -> tuple[tuple[Model, int], ...]:
        """Which layer of which model each layer of the result is named and shaped after: its slice's first source."""
        return tuple(
            (self._model(each.sources[0]), number)
            for each in self.recipe.slices
            for number in range(*self._range(each.sources[0]))
        )

    @property
    def donor(self) -> Model:
        """The model whose configuration the result has: the base, or the first."""
        return self.models[self._numbers[self.recipe.base or self.recipe.slices[0].sources[0].name]]

    @property
    def layered(self) -> bool:
        """Whether the recipe chooses layers."""
        return any(source.layers for each in self.recipe.slices for source in each.sources)

    def _raise(self) -> None:
        found = [self.recipe.placed(fault) for fault in self.faults[:MANY]]
        if len(self.faults) > MANY:
            found.append(Problem(self.recipe.where, f"has {len(self.faults) - MANY:,} more such faults"))
        raise_all(self.recipe.where, found)

    def _model(self, source: Source) -> Model:
        return self.models[self._numbers[source.name]]

    @cached_property
    def _numbers(self) -> Mapping[Name, int]:
        return {model.name: number for number, model in enumerate(self.models)}

    def _range(self, source: Source) -> tuple[int, int]:
        return source.layers or (0, self._model(source).stack.count)

    def _check_slices(self) -> None:
        kinds = {str(model.config.get("model_type")) for model in self.models}
        if len(kinds) > 1:
            self.faults.append(Problem("", f"the models are of different architectures: {', '.join(sorted(kinds))}"))
        for each in self.recipe.slices:
            ranges = [self._range(source) for source in each.sources]
            if len({end - first for first, end in ranges}) > 1:
                shown = ", ".join(f"{source.name} {list(pair)}" for source, pair in zip(each.sources, ranges))  # noqa: B905
                self.faults.append(Problem(each.place, f"takes different numbers of layers: {shown}"))
            for source, (_, end) in zip(each.sources, ranges, strict=True):
                if end > (count := self._model(source).stack.count):
                    what = f"ends at {end}, and {source.name} has {count} layers"
                    self.faults.append(Problem(f"{source.place}.layer_range", what, f"END is at most {count}"))
            self._check_roles(each)

    def _check_roles(self, each: Slice) -> None:
        """The base is among the sources where the method sets it apart, and there are as many models as it takes."""
        method = self.recipe.method
        names = [source.name for source in each.sources]
        apart = method.base != "none" and each.base is not None
        if method.base == "required" and each.base is None:
            self.faults.append(Problem("base_model", f"{method.name()} needs a base model, and none is named"))
        elif apart and names.count(each.base) != 1:  # pyright: ignore[reportArgumentType]
            what = f"the base model {each.base} must be exactly one of the sources"
            self.faults.append(Problem(each.place, what, "Add it with the layer_range of the others"))
        fewest, most = method.models
        count = len(names) - (1 if apart else 0)
        if count < fewest or (most is not None and count > most):
            wanted = str(fewest) if fewest == most else f"{fewest} or more" if most is None else f"{fewest} to {most}"
            beside = " beside the base" if apart else ""
            self.faults.append(Problem(each.place, f"{method.name()} takes {wanted} models{beside}, not {count}"))

    def _wanted(self) -> Iterator[Wanted]:
        first, last = self.recipe.slices[0], self.recipe.slices[-1]
        yield from (wanted for wanted in self._loose(first) if _is_first(wanted.name))
        number = 0
        for each in self.recipe.slices:
            for place, layer in enumerate(self._slice_layers(each)):
                count = len(self._slice_layers(each))
                yield from self._layer(each, layer, number, place / (count - 1) if count > 1 else 1.0)
                number += 1
        yield from (wanted for wanted in self._loose(last) if not _is_first(wanted.name))

    def _slice_layers(self, each: Slice) -> list[tuple[int, ...]]:
        return list(zip(*(range(*self._range(source)) for source in each.sources), strict=True))

    def _loose(self, each: Slice) -> Iterator[Wanted]:
        """Tensors outside the layers; a head that one model has and another ties is read from its embedding."""
        models = [self._model(source) for source in each.sources]
        names = list(dict.fromkeys(name for model in models for name in model.loose))
        for name in names:
            yield Wanted(name, each, tuple(Part(self._numbers[model.name], name) for model in models))

    def _layer(self, each: Slice, layers: tuple[int, ...], number: int, t: float) -> Iterator[Wanted]:
        models = [self._model(source) for source in each.sources]
        rests = dict.fromkeys(rest for model, layer in zip(models, layers, strict=True) for rest in model.layer(layer))
        for rest in rests:
            parts = tuple(
                Part(self._numbers[model.name], f"{model.stack.prefix}{layer}.{rest}")
                for model, layer in zip(models, layers, strict=True)
            )
            yield Wanted(f"{models[0].stack.prefix}{number}.{rest}", each, parts, t)

    def _piece(self, wanted: Wanted) -> Piece | None:
        tensors = [self.models[part.model].tensor(part.name) for part in wanted.parts]
        if missing := [part for part, tensor in zip(wanted.parts, tensors, strict=True) if tensor is None]:
            shown = ", ".join(str(self.models[part.model]) for part in missing)
            self.faults.append(Problem(wanted.slice.place, f"{missing[0].name} is not in {shown}, and it is in others"))
            return None
        present = [tensor for tensor in tensors if tensor is not None]
        vocabulary = self.vocabulary is not None and wanted.name in (*EMBEDDINGS, *HEADS)
        shapes = [(self.vocabulary.size, *t.shape[1:]) if vocabulary and self.vocabulary else t.shape for t in present]
        if len(set(shapes)) > 1:
            self.faults.append(self._misfit(wanted, shapes))
            return None
        types = {tensor.stored for tensor in present}
        if not types <= set(FLOATS):
            return Piece(wanted.name, shapes[0], present[0].stored, wanted.parts, None, None, np.float32)
        return self._merged(wanted, shapes[0], types, vocabulary)

    def _merged(self, wanted: Wanted, shape: tuple[int, ...], types: set[str], vocabulary: bool) -> Piece | None:
        recipe = self.recipe
        apart = recipe.method.base != "none"
        names = [source.name for source in wanted.slice.sources]
        base = names.index(wanted.slice.base) if apart and wanted.slice.base in names else None
        options = Choices(recipe, wanted.slice, wanted.name, [part.name for part in wanted.parts], base, wanted.t)
        method = options.method(self.faults)
        if method is None:
            return None
        stored = recipe.out_dtype or recipe.dtype or promoted(types)
        kind = np.float64 if "F64" in (*types, recipe.dtype) else np.float32
        return Piece(wanted.name, shape, stored, wanted.parts, base, method, kind, vocabulary)

    def _misfit(self, wanted: Wanted, shapes: Sequence[tuple[int, ...]]) -> Problem:
        shown = ", ".join(
            f"{list(shape)} in {self.models[part.model]}" for part, shape in zip(wanted.parts, shapes, strict=True)
        )
        hint = ""
        if wanted.name in (*EMBEDDINGS, *HEADS):
            hint = "Set tokenizer: {source: union} (or base), so that rows are moved by token"
        return Problem(wanted.slice.place, f"{wanted.name} differs in shape: {shown}", hint)


def _is_first(name: str) -> bool:
    return name not in HEADS and any(mark in name for mark in FIRST)
