"""Parameter groups divided by what their weights are: matrices inside layers, other matrices, vectors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from tunesmith.core.problem import Problem
from tunesmith.optimizers import Groups

Test = Callable[[str, torch.Size], bool]

NUMBERED = re.compile(r"(^|\.)(\d+)\.")
"""The number of a layer in a weight's name, as in `model.layers.3.mlp.up_proj.weight`."""


def hidden(name: str, shape: torch.Size) -> bool:
    """Whether a weight is a matrix inside a numbered layer, not an embedding, a head or a vector.

    A stack of matrices, as experts have, counts; a weight without a name is judged by its shape.
    """
    return len(shape) >= 2 and min(shape[-2:]) > 1 and (not name or NUMBERED.search(name) is not None)


def divide(groups: Groups, test: Test) -> tuple[Groups, Groups]:
    """The groups of the weights that pass a test, and those of the others; empty groups are left out."""
    sides: tuple[Groups, Groups] = ([], [])
    for group in groups:
        names = group.get("names") or [""] * len(group["params"])
        passed = [test(name, weight.shape) for name, weight in zip(names, group["params"], strict=True)]
        for side, wanted in zip(sides, (True, False), strict=True):
            chosen = [number for number, found in enumerate(passed) if found == wanted]
            if chosen:
                params = [group["params"][number] for number in chosen]
                side.append({**group, "params": params, "names": [names[number] for number in chosen]})
    return sides


def decayed(groups: Groups, weight_decay: float) -> Groups:
    """Groups as torch takes them, without names: matrices with weight decay, vectors without."""
    matrices, vectors = divide(groups, lambda _, shape: len(shape) >= 2)
    parts = [{**group, "weight_decay": weight_decay} for group in matrices]
    parts += [{**group, "weight_decay": 0.0} for group in vectors]
    return [{name: value for name, value in part.items() if name != "names"} for part in parts]


def weights_of(groups: Groups) -> Iterable[Tensor]:
    """All weights of some groups, in order."""
    return (weight for group in groups for weight in group["params"])


def fusible(groups: Groups) -> bool:
    """Whether torch's fused update (one pass over memory) exists for these weights; it is faster on CPUs and GPUs."""
    return all(weight.device.type in ("cpu", "cuda") and weight.is_floating_point() for weight in weights_of(groups))


def none_hidden(name: str) -> Problem:
    """The fault of an optimizer for matrices over weights that have none inside layers."""
    return Problem(
        f"optimizer.{name}",
        "is for matrices inside layers, and none of the weights that learn is one",
        "Use the optimizer adamw, or a method whose weights are matrices, such as full or lora",
    )


def larger(name: str, shape: torch.Size, rank: int) -> bool:
    """Whether a weight is one matrix inside a layer that has at least so many rows and columns."""
    return hidden(name, shape) and len(shape) == 2 and min(shape) >= rank


def none_larger(name: str, rank: int, groups: Groups) -> Problem:
    """The fault of an optimizer of low rank over weights that are all smaller than the rank."""
    sizes = [min(weight.shape[-2:]) for weight in weights_of(divide(groups, hidden)[0])]
    if not sizes:
        return none_hidden(name)
    return Problem(
        f"optimizer.{name}.rank",
        f"is {rank}, and the largest matrix that learns has only {max(sizes)} on its shorter side",
        f"Use a rank well below {max(sizes)}, the method full, or the optimizer adamw",
    )
