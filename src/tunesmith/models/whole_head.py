"""A frozen last layer in whole numbers, while a model learns (`whole`): likelihoods of tokens and slopes for states.

    z = c W h      states in one digit         p = softmax z, in blocks of rows that stay in the processor's cache
    d log p(t) / dh = c ((1 - p(t)) W(t) - sum of p(v) W(v) over the other v)

The right token's part of the slope is exact. The others' shares become levels of a digit, with the largest of them at
the top; a share between two levels takes the upper one as often as it is near to it, else all that is small would be
lost at once. What decides is a sequence without pattern, the golden ratio's multiples modulo 1, another start for each
row, so nothing is drawn and what is rounded cancels out over tokens. (Dithering: Roberts 1962, IRE Trans. IT-8.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tunesmith.models.whole import WIDE, Value, Whole, fitting, rounded

LOGITS = 12 << 20
"""Logits that exist at once: 48 MiB."""
LEAST = 64
"""Rows that a product is worth its price for."""
SUMMED = (1 << 31) // (127 * (WIDE.base - 1))
"""Tokens whose levels times weights can be added up in 32 bits."""
GOLDEN = 0.6180339887498949
_UPRIGHT = torch.finfo(torch.float32).tiny


def levelled(z: Tensor, by: Tensor, levels: Tensor, between: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shares of a softmax in levels: bytes [n, V], their plain sum [n, 1] and the largest z [n, 1].

    z [n, V]: logits, written over; by [n, 1]: what they are multiplied by; levels [V]: those of a share of 1, with the
    largest logit's share as 1; between [n, V]: what is added before the rest is cut off.
    """
    places = torch.empty(z.shape, dtype=torch.uint8)
    total, largest = torch.empty_like(by), torch.empty_like(by)
    size = fitting(z.shape[1])
    parts = (part.split(size) for part in (z, by, between, places, total, largest))
    for own, scale, above, place, summed, most in zip(*parts, strict=True):
        torch.amax(own, dim=1, keepdim=True, out=most)
        torch.sum(own.sub_(most).mul_(scale).exp_(), dim=1, keepdim=True, out=summed)
        place.copy_(own.mul_(levels).add_(above))
    return places, total, largest


def levelled_at_once(z: Tensor, by: Tensor, levels: Tensor, between: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `levelled` gives, without blocks: for a compiler, which needs none."""
    largest = z.amax(dim=1, keepdim=True)
    shares = ((z - largest) * by).exp()
    return (shares * levels + between).to(torch.int32).to(torch.uint8), shares.sum(dim=1, keepdim=True), largest


Levelled = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class WholeHead(Value):
    """The matrix W [V, d] of a last layer, in whole numbers both ways; levelled: as this file's."""

    def __init__(self, weight: Tensor, levelled: Levelled = levelled) -> None:
        self._levelled = levelled
        weight = weight.detach().float()
        scales = weight.abs().amax(dim=1).div_(127).clamp_min_(_UPRIGHT)
        codes = torch.div(weight, scales[:, None]).round_().to(torch.int8)
        self.weight = weight
        self._there = Whole(codes, scales)
        self._back = [Whole(part.t(), torch.ones(part.shape[1])) for part in codes.split(SUMMED)]
        self._unit = float(scales.max()) / (self._there.digit.base - 2)  # a level less, since up to one is added
        self._levels = scales / self._unit
        self._rows = max(LEAST, LOGITS // len(weight))
        self._between = torch.arange(len(weight) + self._rows, dtype=torch.float64).mul_(GOLDEN).frac_().float()

    def slopes(self, hidden: Tensor, tokens: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """[M] log p of tokens [M] and [M, d] its slopes by hidden [M, d]; scale: of the logits."""
        values, out = hidden.new_empty(len(tokens)), torch.empty_like(hidden)
        for states, right, value, slope in zip(
            *(part.split(self._rows) for part in (hidden, tokens, values, out)), strict=True
        ):
            levels, shares = self._shares(states, right, value, scale)
            rest = self._spread(levels).mul_(shares.mul_(self._unit))
            torch.mul(self.weight[right], value.expm1().neg_()[:, None], out=slope).sub_(rest)
        return values, out if scale == 1.0 else out.mul_(scale)

    def _shares(self, states: Tensor, tokens: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """[n, V] levels of the shares of other tokens than the right ones, and [n, 1] what a level's 1 stands for.

        values: where log p is written.
        """
        digits, scales = rounded(states, self._there.digit)
        logits, by, right = self._there.bytes(digits), scales.mul_(scale), tokens[:, None]
        own = logits.gather(1, right).mul_(by)
        between = self._between.as_strided((len(logits), logits.shape[1]), (1, 1))
        levels, total, largest = self._levelled(logits.scatter_(1, right, -torch.inf), by, self._levels, between)
        largest = largest.mul_(by)
        every = torch.logaddexp(total.log_().add_(largest), own)
        torch.sub(own, every, out=values[:, None])
        return levels, largest.sub_(every).exp_()

    def _spread(self, levels: Tensor) -> Tensor:
        """[n, d] the sum of the codes of all tokens, each as often as its level."""
        parts = zip(levels.split(SUMMED, dim=1), self._back, strict=True)
        found = [back.bytes(part.contiguous(), zero=0) for part, back in parts]
        return found[0] if len(found) == 1 else torch.stack(found).sum(dim=0)
