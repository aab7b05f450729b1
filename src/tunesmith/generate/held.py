"""A model whose linear layers hold their weights in few bits while it answers.

    q_proj ┐                              ┌ its rows
    k_proj ├ one input ─▶ one product ────┼ its rows        last layer: the same, alone
    v_proj ┘  (`JOINED`)                  └ its rows

A layer is replaced by one that computes with the rounded matrix, and that stands for it everywhere: its `weight` is the
rounded matrix written out, for adapters that compute with it. Rounded are the matrices of the base that do not learn;
what an adapter learned stands beside them as it is. Layers that read the same input become one product: the first of
them computes it for all, the others take their rows of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.core.problem import Problem
from tunesmith.generate.products import Matrix
from tunesmith.generate.rounding import in_eight_bits, in_four_bits
from tunesmith.methods._own import Adapted, Part
from tunesmith.models.fast import release
from tunesmith.models.quantize import is_held
from tunesmith.models.twin import twin
from tunesmith.models.whole import lacking

Weights = Literal["plain", "int8", "int4"]
JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("query", "key", "value"), ("w1", "w3"))
"""Names of layers beside each other that read the same input in many families; whether they do is seen at each call."""


class Rounded(nn.Module):
    """A linear layer over a rounded matrix. across: whether its `weight` lies as Conv1D has it, [in, out]."""

    def __init__(self, joint: Joint, place: slice, bias: Tensor | None, dtype: torch.dtype, across: bool) -> None:
        super().__init__()
        self.joint = joint
        self.place = place
        self.bias = None if bias is None else nn.Parameter(bias.data, requires_grad=False)
        self.dtype = dtype
        self.across = across
        self.out_features, self.in_features = place.stop - place.start, joint.matrix.shape[1]

    @property
    def weight(self) -> Tensor:
        """The matrix that it stands for, written out at each look."""
        whole = self.joint.matrix.plain()[self.place].to(self.dtype)
        return whole.T if self.across else whole

    def forward(self, states: Tensor) -> Tensor:
        """[..., N] of states [..., K]."""
        found = self.joint.taken(states, self.place)
        if self.bias is not None:
            found = found + self.bias
        return found.to(states.dtype)


def is_rounded(model: nn.Module) -> bool:
    """Whether any layer of a model computes with a rounded matrix."""
    return any(isinstance(part, Rounded) for part in model.modules())


class Joint:
    """One product for several layers: kept from the first that asks until the last one has taken its rows."""

    def __init__(self, matrix: Matrix, layers: int) -> None:
        self.matrix = matrix
        self.layers = layers
        self._last: tuple[Tensor, int, Tensor] | None = None
        self._left = 0

    def taken(self, states: Tensor, place: slice) -> Tensor:
        """Some rows' products with states [..., K]."""
        if self.layers == 1:
            return self._product(states)
        last = self._last
        if last is None or last[0] is not states or last[1] != states._version:
            last = (states, states._version, self._product(states))
            self._last, self._left = last, self.layers
        self._left -= 1
        if not self._left:
            self._last = None
        return last[2][..., place]

    def _product(self, states: Tensor) -> Tensor:
        found = self.matrix(states.flatten(0, -2))
        return found.unflatten(0, states.shape[:-1])


def hold(model: nn.Module, weights: Weights, *, learns: bool = False) -> int:
    """Round the matrices of a model's base in place; returns how many. `plain` leaves it as it is.

    model: a transformers model or an adapter's wrapper of one; learns: whether matrices that require gradients will
    change, and so stay as they are.

    Raises:
        Problem: this machine or this model cannot have it so.
    """
    if weights == "plain":
        return 0
    _check(model, weights)
    release(model)  # levers read the base's matrices themselves
    chosen = dict(_layers(model, learns))
    if not chosen:
        raise Problem("weights", f"is {weights}, and {type(model).__name__} has no linear layers to round", "Use plain")
    count, ends = 0, {id(part) for part in _ends(model)}
    for group in list(_groups(chosen)):
        layers = [chosen.pop(name) for name in group]
        # the last layer's errors are not healed by any behind it, and it is as fast in 8 bits
        made = _rounded(layers, "int8" if id(layers[0]) in ends else weights)
        for name, layer in zip(group, made, strict=True):
            model.set_submodule(name, layer)
        count += len(group)
    return count


def held_twin(model: nn.Module, weights: Weights) -> nn.Module:
    """A model that learns, beside itself: the same adapter over the rounded base, from the values it has at each call.

    Raises:
        Problem: as `hold`, or what answers would be too far from what learns.
    """
    if weights == "plain":
        return model
    if not isinstance(model, PeftModel | Adapted):
        what = f"is {weights}, and what is rounded once must not learn, as the model's own weights do here"
        raise Problem("engine.local.weights", what, "Use plain, or a method that leaves the base alone, such as lora")
    if weights == "int4":
        what = "is int4, and so coarse a base draws from another distribution than the one that learns"
        raise Problem("engine.local.weights", what, "Use plain or int8")
    beside = twin(model)
    hold(beside, weights, learns=True)
    return beside


def _check(model: nn.Module, weights: str) -> None:
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise Problem("weights", f"is {weights}, which is for a CPU, and the model is on {device.type}", "Use plain")
    if reason := lacking():
        raise Problem("weights", f"is {weights}, and {reason}", "Use plain")
    if is_held(model) or is_rounded(model):
        raise Problem("weights", f"is {weights}, and the base is held in few bits already", "Use plain")


def _layers(model: nn.Module, learns: bool) -> Iterator[tuple[str, nn.Module]]:
    """The linear layers of a base, by name, without those of an adapter and, where it learns, those that do."""
    own = {id(part) for module in model.modules() for part in _adapters(module)}
    kept = tuple(name for part in model.modules() for name in getattr(part, "_keep_in_fp32_modules", None) or ())
    for name, module in model.named_modules():
        fits = type(module) in (nn.Linear, Conv1D) and not (learns and cast(Tensor, module.weight).requires_grad)
        if fits and id(module) not in own and not set(kept) & set(name.split(".")):
            yield name, module


def _ends(model: nn.Module) -> Iterator[nn.Module]:
    """The last layers of a model, those in a wrapper too."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and isinstance(end := module.get_output_embeddings(), nn.Module):
            yield from end.modules()


def _adapters(module: nn.Module) -> Iterator[nn.Module]:
    """Modules that an adapter has of its own."""
    if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
        for name, part in module.named_children():
            yield from () if name in ("base_layer", "original_module") else part.modules()
    elif isinstance(module, Part):
        yield from module.modules()


def _groups(layers: dict[str, nn.Module]) -> Iterator[list[str]]:
    """Names of layers that become one product."""
    left = dict(layers)
    for name in layers:
        if name in left:
            group = next((found for names in JOINED if (found := _beside(name, names, left))), [name])
            yield group
            for other in group:
                del left[other]


def _beside(name: str, names: tuple[str, ...], layers: dict[str, nn.Module]) -> list[str]:
    """The layers whose names differ from one's by these parts alone, if all are there and of one width."""
    parts = name.split(".")
    at = next((place for place, part in enumerate(parts) if part == names[0]), None)
    if at is None:
        return []
    found = [".".join([*parts[:at], other, *parts[at + 1 :]]) for other in names]
    kinds = {(type(layers.get(other)), _matrix(layers[other]).shape[1]) for other in found if other in layers}
    return found if len(kinds) == 1 and all(other in layers for other in found) else []


def _rounded(layers: list[Any], weights: Weights) -> list[Rounded]:
    made = [_matrix(layer) for layer in layers]
    whole = made[0] if len(made) == 1 else torch.cat(made)
    joint = Joint((in_four_bits if weights == "int4" else in_eight_bits)(whole), len(made))
    out: list[Rounded] = []
    start = 0
    for layer, matrix in zip(layers, made, strict=True):
        place = slice(start, start + len(matrix))
        out.append(Rounded(joint, place, layer.bias, matrix.dtype, isinstance(layer, Conv1D)).train(layer.training))
        start = place.stop
    return out


def _matrix(layer: Any) -> Tensor:
    """[out, in]."""
    return layer.weight.data.T if isinstance(layer, Conv1D) else layer.weight.data
