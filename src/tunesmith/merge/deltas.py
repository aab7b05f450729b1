"""Task vectors: what each model adds to the base, scaled, perhaps thinned, perhaps agreed upon, and put back.

    d_i = W_i - W_0        W = W_0 + lambda * sum_i w_i p(d_i) / sum_i w_i     (the division if `normalize`)

p is what a method does to a single task vector. Where the models must agree on signs (TIES), a place takes only the
d_i whose sign is that of their weighted sum, and only their weights count in the division. Ilharco et al.,
arXiv:2212.04089; Yadav et al., arXiv:2306.01708.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tunesmith.merge.methods import Array, Block, Each, MergeMethod
from tunesmith.merge.products import combine

Signs = NDArray[np.unsignedinteger[Any]]
"""The sign at each place as a number's highest bit; the others are zero."""


class DeltaMethod(MergeMethod):
    """What all methods over task vectors share: weights, the division by them, and lambda."""

    base: ClassVar[Literal["none", "optional", "required"]] = "required"
    agreed: ClassVar[bool] = False
    """Whether a place takes only what agrees with the sign of the weighted sum."""

    weight: Each[float]
    """How much of what each model adds to the base."""
    normalize: bool = False
    """Divide by the sum of the weights that count at a place."""
    lambda_: float = Field(1.0, alias="lambda")
    """Multiply the merged task vector by this."""
    int8_mask: bool = False
    """Read for the sake of mergekit's recipes; it changes nothing, since no mask is kept here."""

    def thin(self, delta: Array, model: int, block: Block, known: Any) -> float:
        """Prune a task vector in place; the number that it is to be multiplied by."""
        return 1.0

    def merge(self, block: Block, known: Any) -> Array:
        """The base and the merged task vector."""
        parts = deltas(block)
        scales = [self.thin(part, model, block, known) for model, part in enumerate(parts)]
        merged = self._agreed(parts, scales) if self.agreed else self._sum(parts, scales)
        if self.lambda_ != 1:
            merged *= self.lambda_
        merged += base_of(block)
        return merged

    def _sum(self, parts: Sequence[Array], scales: Sequence[float]) -> Array:
        merged = combine(parts, [scale * weight for scale, weight in zip(scales, self.weight, strict=True)])
        total = sum(self.weight)
        if self.normalize and abs(total) >= 1e-8:
            merged /= total
        return merged

    def _agreed(self, parts: Sequence[Array], scales: Sequence[float]) -> Array:
        for part, scale, weight in zip(parts, scales, self.weight, strict=True):
            part *= scale * weight
        merged, divisor = agreeing(parts, majority(parts), self.weight)
        if self.normalize:
            divisor += divisor == 0  # where nothing agrees, nothing is divided
            merged /= divisor
        return merged


def base_of(block: Block) -> Array:
    """The base's rows, for a method that requires a base."""
    if block.base is None:
        raise TypeError("this method was given no base")
    return block.base


def deltas(block: Block) -> list[Array]:
    """What each model adds to the base; its rows are overwritten."""
    base = base_of(block)
    return [np.subtract(tensor, base, out=tensor) for tensor in block.tensors]


def directions(block: Block) -> Sequence[Array]:
    """The models' rows, less the base's if there is one; they are overwritten."""
    return block.tensors if block.base is None else deltas(block)


def changed(block: Block, epsilon: float) -> tuple[list[Array], Array]:
    """What each model changed by more than epsilon, zero elsewhere, and how many models did so at each place."""
    parts = deltas(block)
    counts = np.zeros_like(parts[0])
    for part in parts:
        mask = np.abs(part) > epsilon
        part *= mask
        counts += mask
    return parts, counts


def majority(parts: Sequence[Array]) -> Signs:
    """The sign of the sum at each place; where they cancel it is positive."""
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    bits: Signs = total.view(f"u{total.itemsize}")
    bits &= bits.dtype.type(1 << 8 * total.itemsize - 1)
    return bits


def agreeing(parts: Sequence[Array], sign: Signs, weights: Sequence[float]) -> tuple[Array, Array]:
    """At each place the sum of what has this sign, and the sum of the weights of these.

    What is zero has no sign. The arrays are overwritten.
    """
    for part in parts:
        _flip(part, sign)
    divisor = _weight([part > 0 for part in parts], weights, parts[0].dtype)
    merged, *others = (np.maximum(part, 0, out=part) for part in parts)
    for part in others:
        merged += part
    return _flip(merged, sign), divisor


def _flip(values: Array, sign: Signs) -> Array:
    """Numbers times a sign, in place."""
    bits = values.view(sign.dtype)
    bits ^= sign
    return values


def _weight(masks: Sequence[NDArray[np.bool_]], weights: Sequence[float], kind: np.dtype[Any]) -> Array:
    """The sum of the weights of what is there at each place; equal ones are counted, which is cheaper than adding."""
    counts: dict[float, NDArray[Any]] = {}
    for mask, weight in zip(masks, weights, strict=True):
        count = counts.setdefault(weight, np.zeros(mask.shape, np.min_scalar_type(len(masks))))
        count += mask.view(np.uint8)
    total, *others = (np.multiply(count, weight, dtype=kind) for weight, count in counts.items())
    for other in others:
        total += other
    return total
