"""A base held in 8 bits computed in 8 bits: products in whole numbers, forward and backward (`whole`).

    y = x W'      x in one digit, a scale for each token
    dx = dy W     dy r in digits: the scales r of W's rows go into the gradient, since it is summed over them

Plain, such a base is written out in float32 at each product, which costs more than it saves; here its products take
half of the plain ones' time. What learns beside it is computed in float32 as ever. The last layer, which stays plain,
is computed so too while a sum of likelihoods is learned from and it is frozen (`whole_head`).

Where products in whole numbers cannot be had the base is written out here too, but by functions that keep no matrix for
the backward pass: its memory is that of the bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.models.fast import WHOLE
from tunesmith.models.fast._pieces import Maker, as_it_is
from tunesmith.models.likelihood import IN_WHOLE
from tunesmith.models.whole import Added, Digits, Rounded, Value, Whole, lacking, rounded, rounded_at_once
from tunesmith.models.whole_head import WholeHead, levelled, levelled_at_once

FORWARD: Digits = 1
BACKWARD: Digits = 1
"""Digits of activations and of gradients: with one each a run learns what it learns in float32, to its own noise."""


class Both(Value):
    """A matrix W = r * codes in both directions. codes [out, in]; scales r [out]; rounded: as `whole.rounded`."""

    def __init__(self, codes: Tensor, scales: Tensor, rounded: Callable[..., Rounded] = rounded) -> None:
        self.scales = scales.float()
        self._rounded = rounded
        self._there = Whole(codes, self.scales)
        self._back = Whole(codes.t().contiguous(), torch.ones(codes.shape[1]))

    def read(self, x: Tensor) -> Rounded | None:
        """x [N, in] in one digit, which several matrices can take; None where they take two."""
        return self._rounded(x, self._there.digit) if FORWARD == 1 else None

    def forward(self, x: Tensor, added: Added | None = None, read: Rounded | None = None) -> Tensor:
        """x W', [N, in] to [N, out], with another product added; read: x as `read` gives it, where that is known."""
        read = read or self.read(x)
        if read is not None:
            return self._there.of(read, added)
        y = self._there(x, FORWARD)
        return y if added is None else added.to(y)

    def backward(self, dy: Tensor, added: Added | None = None, into: Tensor | None = None) -> Tensor:
        """dy W, [N, out] to [N, in], with another product added, itself added to `into` where that is given."""
        if BACKWARD == 1:
            return self._back.of(self._rounded(dy, self._back.digit, self.scales), added, into)
        dx = self._back(dy * self.scales, BACKWARD)
        dx = dx if added is None else added.to(dx)
        return dx if into is None else into.add_(dx)


class Written(Value):
    """The same matrix, written out in float32 for each product. codes [out, in]; scales r [out]."""

    def __init__(self, codes: Tensor, scales: Tensor) -> None:
        self.codes = codes
        self.scales = scales.float()[:, None]

    def read(self, x: Tensor) -> Rounded | None:
        """Nothing that several matrices can take."""
        return None

    def forward(self, x: Tensor, added: Added | None = None, read: Rounded | None = None) -> Tensor:
        """x W', [N, in] to [N, out], with another product added."""
        y = x @ self._plain().t()
        return y if added is None else added.to(y)

    def backward(self, dy: Tensor, added: Added | None = None, into: Tensor | None = None) -> Tensor:
        """dy W, [N, out] to [N, in], with another product added, itself added to `into` where that is given."""
        dx = dy @ self._plain() if into is None else into.addmm_(dy, self._plain())
        return dx if added is None else added.to(dx)

    def _plain(self) -> Tensor:
        return self.codes * self.scales


def pull(model: nn.Module, make: Maker = as_it_is) -> int:
    """Compute the layers of a model so that are held in 8 bits; returns how many there are."""
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and _codes(layer) is not None]
    if not layers:
        return 0
    kind = Written if lacking() else partial(Both, rounded=make(rounded, rounded_at_once))
    for layer in layers:
        codes: Any = _codes(layer)
        vars(layer)[WHOLE] = kind(codes.qdata, codes.scale.flatten())
    return len(layers) + (0 if lacking() else _take_head(model, make))


def _take_head(model: nn.Module, make: Maker) -> int:
    """Hold the last layer in whole numbers too, beside its weights, if it is a plain one that stays as it is."""
    base = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)
    layer = None if base is None else base.get_output_embeddings()
    if type(layer) is not nn.Linear or layer.weight.requires_grad or layer.weight.dtype != torch.float32:
        return 0
    vars(layer)[IN_WHOLE] = WholeHead(layer.weight, make(levelled, levelled_at_once))
    return 1


def _codes(layer: nn.Linear) -> Any:
    """A layer's weights as torchao holds them in 8 bits, a scale for each row; None for others."""
    weight: Any = layer.weight
    names = tuple(getattr(weight, "tensor_data_names", ()))
    if names != ("qdata", "scale") or weight.qdata.dtype != torch.int8 or weight.qdata.device.type != "cpu":
        return None
    return weight if weight.scale.numel() == len(weight.qdata) and not layer.weight.requires_grad else None
