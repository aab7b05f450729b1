"""A base held in 8 bits computed in 8 bits: products in whole numbers, forward and backward (`whole`).

    y = x W'      x in one digit, a scale for each token
    dx = dy W     dy r in digits: the scales r of W's rows go into the gradient, since it is summed over them

Plain, such a base is written out in float32 at each product, which costs more than it saves; here its products take
half of the plain ones' time. What learns beside it is computed in float32 as ever.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.models.fast import WHOLE
from tunesmith.models.whole import Digits, Value, Whole, lacking

FORWARD: Digits = 1
BACKWARD: Digits = 1
"""Digits of activations and of gradients: with one each a run learns what it learns in float32, to its own noise."""


class Both(Value):
    """A matrix W = r * codes in both directions. codes [out, in]; scales r [out]."""

    def __init__(self, codes: Tensor, scales: Tensor) -> None:
        self.scales = scales.float()
        self._there = Whole(codes, self.scales)
        self._back = Whole(codes.t().contiguous(), torch.ones(codes.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        """x W', [N, in] to [N, out]."""
        return self._there(x, FORWARD)

    def backward(self, dy: Tensor) -> Tensor:
        """dy W, [N, out] to [N, in]."""
        return self._back(dy * self.scales, BACKWARD)


def pull(model: nn.Module) -> int:
    """Compute the layers of a model so that are held in 8 bits; returns how many there are."""
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and _codes(layer) is not None]
    if not layers or lacking():
        return 0
    for layer in layers:
        codes: Any = _codes(layer)
        vars(layer)[WHOLE] = Both(codes.qdata, codes.scale.flatten())
    return len(layers)


def _codes(layer: nn.Linear) -> Any:
    """A layer's weights as torchao holds them in 8 bits, a scale for each row; None for others."""
    weight: Any = layer.weight
    names = tuple(getattr(weight, "tensor_data_names", ()))
    if names != ("qdata", "scale") or weight.qdata.dtype != torch.int8 or weight.qdata.device.type != "cpu":
        return None
    return weight if weight.scale.numel() == len(weight.qdata) and not layer.weight.requires_grad else None
