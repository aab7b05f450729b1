"""Gated MLPs as one autograd function:  y = down(act(gate x) * up x).

Kept for the backward pass are x, gate x and up x; the product before `down` is found again from these, and each buffer
is used again as soon as what it holds has been read. The layers may have LoRA beside them (`_affine`), or learn whole.

    dh = dy Wd           h = act(g) * u
    du = dh * act(g)     dg = dh * u * act'(g)       dx = dg Wg + du Wu
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from transformers.activations import GELUTanh

from tunesmith.models.device import untyped
from tunesmith.models.fast import plain
from tunesmith.models.fast._affine import Readers, affine_of, settled
from tunesmith.models.fast._pieces import Maker, as_it_is
from tunesmith.models.fast._trial import take

PARTS = ("gate_proj", "up_proj", "down_proj")
aten: Any = torch.ops.aten


class Gate(NamedTuple):
    """What stands between the products, of g and u [N, F].

    value: h = act(g) * u; slopes: of dh, g and u, h again, dg and du, of which one may lie in dh's place.
    """

    value: Callable[[Tensor, Tensor], Tensor]
    slopes: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def _gate(act: Callable[[Tensor], Tensor], back: Callable[[Tensor, Tensor], Tensor]) -> Gate:
    """back: dy * act'(x) of dy and x."""

    def value(g: Tensor, u: Tensor) -> Tensor:
        return act(g).mul_(u)

    def slopes(dh: Tensor, g: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shown = act(g)
        return shown * u, back(dh * u, g), shown.mul_(dh)

    return Gate(value, slopes)


def _gelu(approximate: str) -> Gate:
    return _gate(partial(F.gelu, approximate=approximate), partial(aten.gelu_backward, approximate=approximate))


GATES = {"silu": _gate(F.silu, aten.silu_backward), "gelu": _gelu("none"), "tanh": _gelu("tanh")}


def pull(model: nn.Module, make: Maker = as_it_is) -> int:
    """Compute a model's gated MLPs so; returns how many there are."""
    gates = {name: Gate(make(gate.value), make(gate.slopes)) for name, gate in GATES.items()}
    return take(model, "mlp", partial(_forward, gates), _looks_alike, lambda part: part.gate_proj.in_features)


def _looks_alike(part: Any) -> bool:
    layers = [getattr(part, name, None) for name in PARTS]
    return gate_of(getattr(part, "act_fn", None)) is not None and None not in [
        affine_of(layer) if isinstance(layer, nn.Module) else None for layer in layers
    ]


def gate_of(activation: object) -> str | None:
    """The name in `GATES` of a module's activation, None for others."""
    if isinstance(activation, nn.SiLU) or type(activation).__name__ == "SiLUActivation":
        return "silu"
    if isinstance(activation, GELUTanh) or (isinstance(activation, nn.GELU) and activation.approximate == "tanh"):
        return "tanh"
    return "gelu" if isinstance(activation, nn.GELU) or type(activation).__name__ == "GELUActivation" else None


def _forward(gates: dict[str, Gate], part: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    ready = None if args or kwargs else settled(x, *(affine_of(getattr(part, name)) for name in PARTS))
    gate = gate_of(part.act_fn)
    if ready is None or gate is None:
        return plain(part, x, *args, **kwargs)
    x, layers = ready
    with untyped(x):
        tensors = [tensor for layer in layers for tensor in layer.tensors]
        return Gated.apply(x, gates[gate], [layer.rest for layer in layers], *tensors)  # type: ignore[no-any-return]


class Gated(Function):
    """x [..., d] through a gated MLP, to [..., d]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Gate, rests: list[tuple[Any, ...]], *tensors: Tensor | None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        (g, u), t = Readers(tensors[:8], rests[:2]).forward(rows)
        (y,), th = Readers(tensors[8:], rests[2:]).forward(gate.value(g, u))
        ctx.gate, ctx.rests = gate, rests
        learns = any(ctx.needs_input_grad[3:11])
        ctx.save_for_backward(rows if learns else None, g, u, t, th, *tensors)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        rows, g, u, t, th, *tensors = ctx.saved_tensors
        pair, last = Readers(tensors[:8], ctx.rests[:2]), Readers(tensors[8:], ctx.rests[2:])
        needs = ctx.needs_input_grad[3:]
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        dh, vh = last.backward([dy])
        h, dg, du = ctx.gate.slopes(dh, g, u)
        del dh
        learned = last.learned(needs[8:], h, [dy], th, vh)
        del h
        dx, v = pair.backward([dg, du])
        learned = pair.learned(needs[:8], rows, [dg, du], t, v) + learned
        return dx.view(*grads[0].shape[:-1], -1), None, None, *learned
