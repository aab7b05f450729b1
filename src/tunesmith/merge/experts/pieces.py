"""Which tensors a mixture has, and what each is made of; all that can be wrong is found before a weight is read.

embeddings · for each layer: what is no MLP, router, experts, shared expert and its gate · norm, head ─▶ Piece, …
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from tunesmith.core.problem import Problem
from tunesmith.merge.experts.layouts import BIASES, BUFFER, MLP, Checkpoint
from tunesmith.merge.experts.parts import Expert, Given
from tunesmith.merge.experts.recipe import ExpertSpec, MixtureRecipe
from tunesmith.merge.experts.routers import Routers
from tunesmith.merge.inputs import Model
from tunesmith.merge.layout import Part, Piece
from tunesmith.merge.methods import Array, MergeMethod
from tunesmith.merge.methods.linear import Linear
from tunesmith.merge.methods.passthrough import Passthrough
from tunesmith.merge.numbers import FLOATS, promoted

MANY = 20
"""Faults that are told: what is wrong with one layer is often wrong with all."""


@dataclass
class Planner:
    """Plans the tensors of a mixture; what is wrong is gathered in `faults`."""

    recipe: MixtureRecipe
    models: Sequence[Model]
    checkpoint: Checkpoint
    routers: Routers
    faults: list[Problem] = field(default_factory=list[Problem])

    def pieces(self) -> tuple[Piece, ...]:
        """Every tensor, in the order of the files.

        Raises:
            Problem: models that do not fit together; all faults at once.
        """
        self.faults += self.checkpoint.faults(self.base, self.recipe.mixture)
        for place, expert in self._placed():
            self._check(place, self._model(expert))
        self.recipe.refuse(self.faults[:MANY])
        made = list(self._all())
        self.recipe.refuse(self.faults[:MANY])
        return tuple(made)

    @property
    def base(self) -> Model:
        """The model that gives the configuration."""
        return self.models[0]

    def _number(self, expert: ExpertSpec) -> int:
        return self.recipe.models.index(expert.source_model)

    def _model(self, expert: ExpertSpec) -> Model:
        return self.models[self._number(expert)]

    def _placed(self) -> Iterator[tuple[str, ExpertSpec]]:
        mixture = self.recipe.mixture
        for name, experts in (("experts", mixture.experts), ("shared_experts", mixture.shared_experts)):
            yield from ((f"{name}.{number}", expert) for number, expert in enumerate(experts))

    def _check(self, place: str, model: Model) -> None:
        """An expert is of the base's architecture, and what its adapter changes is its own."""
        kind, wanted = model.config.get("model_type"), self.base.config.get("model_type")
        if kind != wanted:
            self.faults.append(Problem(f"{place}.source_model", f"is a {kind} model, and the base is {wanted}"))
        elif model.stack.count != self.base.stack.count:
            what = f"has {model.stack.count} layers, and the base has {self.base.stack.count}"
            self.faults.append(Problem(f"{place}.source_model", what))
        changed = sorted(model.adaption.changes) if model.adaption else []
        if self.recipe.mixture.rest == "base" and (lost := [name for name in changed if ".mlp." not in name]):
            what = (
                f"has an adapter that changes {len(lost)} weights outside the MLPs ({lost[0]} …), which experts share"
            )
            hint = "Set rest: mean to average these over the experts, or train adapters with targets in the MLP alone"
            self.faults.append(Problem(f"{place}.source_model", what, hint))

    def _all(self) -> Iterator[Piece]:
        first = self.base.embedding
        loose = dict.fromkeys(name for model in self._of_rest() for name in model.loose)
        yield from (self._rest(name) for name in loose if name == first)
        for layer in range(self.base.stack.count):
            yield from self._layer(layer)
        yield from (self._rest(name) for name in loose if name != first)

    def _of_rest(self) -> list[Model]:
        """The models that give what is no MLP."""
        mixture = self.recipe.mixture
        return [self._model(expert) for expert in mixture.experts] if mixture.rest == "mean" else [self.base]

    def _layer(self, layer: int) -> Iterator[Piece]:
        prefix, mixture = f"{self.base.stack.prefix}{layer}.", self.recipe.mixture
        rests = [rest for rest in self.base.layer(layer) if not rest.startswith("mlp.") and not rest.endswith(BUFFER)]
        yield from (self._rest(prefix + rest) for rest in rests)
        if self.checkpoint.biased:
            yield from (self._zeros(prefix + name) for name in BIASES if name not in rests)
        block, count = f"{prefix}{self.checkpoint.block}.", len(mixture.experts)
        yield self._router(f"{block}gate.weight", layer, slice(0, count))
        for number, expert in enumerate(mixture.experts):
            yield from self._expert(expert, prefix, f"{block}experts.{number}.", self.checkpoint.parts)
        for expert in mixture.shared_experts:
            yield from self._expert(expert, prefix, f"{block}shared_expert.", {part: part for part in MLP})
            yield self._router(f"{block}shared_expert_gate.weight", layer, slice(count, count + 1))

    def _expert(self, expert: ExpertSpec, prefix: str, block: str, names: Any) -> Iterator[Piece]:
        for part in MLP:
            scale = expert.residual_scale if part == "down_proj" else None
            method = Expert(scale=scale, noise=expert.noise_scale)
            sources = (Part(self._number(expert), f"{prefix}mlp.{part}.weight"),)
            if (piece := self._piece(f"{block}{names[part]}.weight", sources, method)) is not None:
                yield piece

    def _rest(self, name: str) -> Piece:
        """A tensor that all experts share."""
        numbers = [self.models.index(model) for model in self._of_rest()]
        method = Passthrough() if len(numbers) == 1 else Linear(weight=(1.0,) * len(numbers))
        found = self._piece(name, tuple(Part(number, name) for number in numbers), method)
        return found or self._known(name, (0,), np.zeros(0, np.float32).copy)

    def _piece(self, name: str, parts: tuple[Part, ...], method: MergeMethod) -> Piece | None:
        """A tensor of models; None where one lacks it or has it otherwise, which is noted."""
        tensors = [self.models[part.model].tensor(part.name) for part in parts]
        own = self.base.tensor(parts[0].name)
        for part, tensor in zip(parts, tensors, strict=True):
            if tensor is None or own is None:
                what = f"{part.name} is not in it" if tensor is None else f"{part.name} is not in the base"
            elif tensor.shape != own.shape:
                what = f"{part.name} is {list(tensor.shape)}, and in the base {list(own.shape)}"
            elif tensor.stored not in FLOATS:
                what = f"{part.name} holds {tensor.stored} numbers, and such are not taken"
            else:
                continue
            self.faults.append(Problem(str(self.models[part.model]), what))
            return None
        types = {tensor.stored for tensor in tensors if tensor is not None}
        stored = self.recipe.stored or promoted(types)
        kind = np.float64 if "F64" in types else np.float32
        return Piece(name, own.shape if own else (), stored, parts, None, method, kind)

    def _router(self, name: str, layer: int, rows: slice) -> Piece:
        """A router: the rows of some experts."""
        count = len(range(*rows.indices(len(self.recipe.sources))))
        return self._known(name, (count, int(self.base.config["hidden_size"])), partial(self._rows, layer, rows))

    def _rows(self, layer: int, rows: slice) -> Array:
        return self.routers.all[layer, rows]

    def _zeros(self, name: str) -> Piece:
        """A bias that the layout has and the base has not."""
        weight = self.base.tensor(name.removesuffix("bias") + "weight")
        shape = (weight.shape[0] if weight else 0,)
        return self._known(name, shape, lambda: np.zeros(shape, np.float32))

    def _known(self, name: str, shape: tuple[int, ...], rows: Any) -> Piece:
        """A tensor whose values are found elsewhere, in the type of the base's first MLP."""
        like = self.base.tensor(f"{self.base.stack.prefix}0.mlp.up_proj.weight")
        stored = self.recipe.stored or (like.stored if like else "F32")
        piece = Piece(name, shape, stored, (), None, None, np.float32)
        step = piece.block_rows if len(shape) > 1 else max(*shape, 1)
        return replace(piece, method=Given(rows=rows, step=step))
