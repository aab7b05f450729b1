"""A frozen last layer in whole numbers, while a model learns (`whole`): likelihoods of tokens and slopes for states.

    z = c W h      states in one digit         p = softmax z, in blocks of rows that stay in the processor's cache
    d log p(t) / dh = c ((1 - p(t)) W(t) - sum of p(v) W(v) over the other v)

The right token's part of the slope is exact. The others' shares become levels of 8 bits, with the largest of them at
the top; a share between two levels takes the upper one as often as it is near to it, else all that is small would be
lost at once. What decides is a sequence without pattern, the golden ratio's multiples modulo 1, another start for each
row, so nothing is drawn and what is rounded cancels out over tokens. (Dithering: Roberts 1962, IRE Trans. IT-8.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from tunesmith.models.whole import Value, Whole, fitting, rounded

LOGITS = 6 << 20
"""Logits that exist at once: 24 MiB, small enough to be the same memory again each time."""
LEAST = 64
"""Rows that a product is worth its price for."""
LEVELS = 254
SUMMED = (1 << 31) // (127 * (LEVELS + 1))
"""Tokens whose levels times weights can be added up in 32 bits."""
GOLDEN = 0.6180339887498949
_UPRIGHT = torch.finfo(torch.float32).tiny


class WholeHead(Value):
    """The matrix W [V, d] of a last layer, in whole numbers both ways."""

    def __init__(self, weight: Tensor) -> None:
        weight = weight.detach().float()
        scales = weight.abs().amax(dim=1).div_(127).clamp_min_(_UPRIGHT)
        codes = torch.div(weight, scales[:, None]).round_().to(torch.int8)
        self.weight = weight
        self._there = Whole(codes, scales)
        self._back = [Whole(part.t(), torch.ones(part.shape[1])) for part in codes.split(SUMMED)]
        self._unit = float(scales.max()) / LEVELS
        self._levels = scales / self._unit
        self._rows = max(LEAST, LOGITS // len(weight))
        self._between = torch.arange(len(weight) + self._rows, dtype=torch.float64).mul_(GOLDEN).frac_().float()

    def slopes(self, hidden: Tensor, tokens: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """[M] log p of tokens [M] and [M, d] its slopes by hidden [M, d]; scale: of the logits."""
        values, out = hidden.new_empty(len(tokens)), torch.empty_like(hidden)
        for states, right, value, slope in zip(
            *(part.split(self._rows) for part in (hidden, tokens, values, out)), strict=True
        ):
            levels, shares = self._levelled(states, right, value, scale)
            rest = self._spread(levels).mul_(shares.mul_(self._unit))
            torch.mul(self.weight[right], value.expm1().neg_()[:, None], out=slope).sub_(rest)
        return values, out if scale == 1.0 else out.mul_(scale)

    def _levelled(self, states: Tensor, tokens: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """[n, V] levels of the shares of other tokens than the right ones, and [n, 1] what a level's 1 stands for.

        values: where log p is written.
        """
        digits, scales = rounded(states)
        logits = self._there.bytes(digits)
        levels, shares = torch.empty(logits.shape, dtype=torch.uint8), torch.empty_like(scales)
        between = self._between.as_strided((len(logits), logits.shape[1]), (1, 1))
        size = fitting(logits.shape[1])
        for z, right, by, above, place, value, share in zip(
            *(
                part.split(size)
                for part in (logits, tokens[:, None], scales.mul_(scale), between, levels, values[:, None], shares)
            ),
            strict=True,
        ):
            own = z.mul_(by).gather(1, right)
            largest = z.scatter_(1, right, -torch.inf).amax(dim=1, keepdim=True)
            others = z.sub_(largest).exp_().sum(dim=1, keepdim=True).log_().add_(largest)
            every = torch.logaddexp(others, own)
            torch.sub(own, every, out=value)
            torch.sub(largest, every, out=share).exp_()
            place.copy_(z.mul_(self._levels).add_(above))
        return levels, shares

    def _spread(self, levels: Tensor) -> Tensor:
        """[n, d] the sum of the codes of all tokens, each as often as its level."""
        parts = zip(levels.split(SUMMED, dim=1), self._back, strict=True)
        found = [back.bytes(part.contiguous(), zero=0) for part, back in parts]
        return found[0] if len(found) == 1 else torch.stack(found).sum(dim=0)
