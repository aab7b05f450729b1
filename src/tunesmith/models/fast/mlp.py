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
from tunesmith.models.fast._affine import Affine, affine_of, settled
from tunesmith.models.fast._trial import take

PARTS = ("gate_proj", "up_proj", "down_proj")
aten: Any = torch.ops.aten


class Gate(NamedTuple):
    """An activation, and what it makes of a gradient, in that gradient's place: dy * act'(x) of dy and x."""

    value: Callable[[Tensor], Tensor]
    back: Callable[[Tensor, Tensor], Tensor]


def _silu_back(dy: Tensor, x: Tensor) -> Tensor:
    return aten.silu_backward.grad_input(dy, x, grad_input=dy)  # type: ignore[no-any-return]


def _gelu(approximate: str) -> Gate:
    def back(dy: Tensor, x: Tensor) -> Tensor:
        return aten.gelu_backward.grad_input(dy, x, approximate=approximate, grad_input=dy)  # type: ignore[no-any-return]

    return Gate(partial(F.gelu, approximate=approximate), back)


GATES = {"silu": Gate(F.silu, _silu_back), "gelu": _gelu("none"), "tanh": _gelu("tanh")}


def pull(model: nn.Module) -> int:
    """Compute a model's gated MLPs so; returns how many there are."""
    return take(model, "mlp", _forward, _looks_alike, lambda part: part.gate_proj.in_features)


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


def _forward(part: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    ready = None if args or kwargs else settled(x, *(affine_of(getattr(part, name)) for name in PARTS))
    gate = gate_of(part.act_fn)
    if ready is None or gate is None:
        return plain(part, x, *args, **kwargs)
    x, layers = ready
    with untyped(x):
        tensors = [tensor for layer in layers for tensor in layer.tensors]
        return Gated.apply(x, gate, [layer.rest for layer in layers], *tensors)  # type: ignore[no-any-return]


def _layers(tensors: Any, rests: list[tuple[Any, ...]]) -> list[Affine]:
    return [Affine(*tensors[4 * n : 4 * n + 4], *rest) for n, rest in enumerate(rests)]  # type: ignore[call-arg]


class Gated(Function):
    """x [..., d] through a gated MLP, to [..., d]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: str, rests: list[tuple[Any, ...]], *tensors: Tensor | None) -> Tensor:
        first, second, last = _layers(tensors, rests)
        rows = x.reshape(-1, x.shape[-1])
        read = first.read(rows)
        (g, tg), (u, tu) = first.forward(rows, read), second.forward(rows, read)
        del read
        y, th = last.forward(GATES[gate].value(g).mul_(u))
        ctx.gate, ctx.rests = gate, rests
        learns = any(ctx.needs_input_grad[3:11])
        ctx.save_for_backward(rows if learns else None, g, u, tg, tu, th, *tensors)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        rows, g, u, tg, tu, th, *tensors = ctx.saved_tensors
        first, second, last = _layers(tensors, ctx.rests)
        needs, gate = ctx.needs_input_grad[3:], GATES[ctx.gate]
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        dh, vh = last.backward(dy)
        value = gate.value(g)
        h = value * u
        learned = last.learned(needs[8:], h, dy, th, vh)
        dg = gate.back(torch.mul(dh, u, out=h), g)
        du = dh.mul_(value)
        del value
        dx, vg = first.backward(dg)
        dx, vu = second.backward(du, into=dx)
        learned = (
            *first.learned(needs[:4], rows, dg, tg, vg),
            *second.learned(needs[4:8], rows, du, tu, vu),
            *learned,
        )
        return dx.view(*grads[0].shape[:-1], -1), None, None, *learned
