"""Levers: pieces of a loaded model computed faster, one a file, each beside the plain piece that is its oracle.

    model ─▶ head      the last layer's gradients written out, in memory that is there
          ├▶ int8      a base held in 8 bits, in products of whole numbers
          ├▶ lora      PEFT's LoRA layers as one autograd function
          ├▶ mlp       gated MLPs as one autograd function
          ├▶ norm      RMS norms in few passes
          ├▶ attention attention over a whole forest: at once on a GPU, in parts on a processor
          ├▶ fused     what int8, mlp, norm, rotary do, compiled by torch; on a processor, for long runs
          └▶ compile   layers compiled by torch, where it is asked for
                  (`off`: the model's and PEFT's own modules, unchanged)

A lever only changes how a module is computed: it binds another `forward` to the module itself. Weights, names, classes,
saving and folding know nothing of it, and where a lever cannot compute what is asked at a moment (an adapter switched
off, dropout, somebody listening to an inner layer), it calls the module's own `forward`. Whether a module computes
what a lever takes it for is found by trying, once for each class: values and gradients of both must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from types import MethodType
from typing import Any

import torch
from torch import nn

from tunesmith.core.problem import Problem
from tunesmith.models.attention import KERNELS
from tunesmith.models.likelihood import BY_HAND, IN_WHOLE

LEVERS: Mapping[str, tuple[str, ...]] = {
    "head": ("cpu", "cuda", "mps"),
    "int8": ("cpu",),
    "lora": ("cpu", "cuda", "mps"),
    "mlp": ("cpu", "cuda", "mps"),
    "norm": ("cpu",),
    "rotary": ("cpu",),
    "attention": ("cpu", "cuda"),
    "fused": (),
    "compile": (),
}
"""The names of levers, which are those of their files, and the devices on which `auto` uses them, in order.

A file holds `pull(model)`, which changes how the model is computed and returns for how many of its modules.
"""
LONG: Mapping[str, tuple[str, ...]] = {**LEVERS, "fused": ("cpu",)}
"""The devices on which `long` uses them: those of `auto`, and those that cost some seconds once."""
FUSED = ("int8", "mlp", "norm", "rotary")
"""Levers whose `pull(model, make)` takes how their pieces are made (`_pieces`)."""

WHOLE = "whole_matrix"
"""The attribute of a layer that holds its matrix in whole numbers, both ways."""
TOGETHER = "read_together"
"""The attribute of a layer that holds those that read the same states, itself among them."""


def quicken(model: nn.Module, chosen: str | Sequence[str], device: torch.device) -> dict[str, int]:
    """Put levers on a model with its method: those for the device (`auto`, `long`), none (`off`), or those named.

    Returns how many modules each took. Levers that were on the model before are taken off. On `meta`, where nothing is
    computed, nothing is compiled.

    Raises:
        Problem: a piece shall be compiled, and there is no compiler.
    """
    release(model)
    if isinstance(chosen, str):
        table = {"auto": LEVERS, "long": LONG}.get(chosen, {})
        chosen = [name for name, kinds in table.items() if device.type in kinds]
    pull = {name: import_module(f"{__name__}.{name}").pull for name in LEVERS if name in chosen}
    if "fused" in pull and not any(weight.is_meta for weight in model.parameters()):
        make = import_module(f"{__name__}.fused").compiled
        pull |= {name: partial(pull[name], make=make) for name in FUSED if name in pull}
    return {name: put(model) for name, put in pull.items()}


def described(chosen: str | Sequence[str], took: Mapping[str, int]) -> str:
    """What levers took, for a person; empty where they took nothing.

    Raises:
        Problem: a lever that was named takes nothing.
    """
    idle = [name for name, count in took.items() if not count and not isinstance(chosen, str)]
    if idle:
        raise Problem("model.fast", f"{idle[0]} finds nothing in this model that it could compute", "Leave it out")
    pieces = ", ".join(f"{name} {count}" for name, count in took.items() if count)
    return f"computed faster: {pieces} (model.fast)" if pieces else ""


def release(model: nn.Module) -> None:
    """Take all levers off a model."""
    for module in model.modules():
        if "quickened" in vars(module):
            del module.forward, vars(module)["quickened"]
        for name in (KERNELS, BY_HAND, IN_WHOLE, WHOLE, TOGETHER, "_compiled_call_impl"):
            vars(module).pop(name, None)


def bind(module: nn.Module, forward: Callable[..., Any], name: str) -> None:
    """Compute a module by `forward(module, ...)`."""
    vars(module)["quickened"] = name
    module.forward = MethodType(forward, module)


def plain(module: Any, *args: Any, **kwargs: Any) -> Any:
    """What a module computes by itself, without the lever on it."""
    return type(module).forward(module, *args, **kwargs)
