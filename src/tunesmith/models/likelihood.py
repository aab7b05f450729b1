"""The likelihood of tokens: the last layer of a language model, computed only at targets and in chunks.

    log p(token | hidden) = (z - logsumexp z)[token],   z = cap * tanh((scale * W h + bias) / cap)

(as the architecture has them: Granite, Cohere and T5 scale, BART adds a bias, Gemma 2 caps.) With label smoothing e the
right token counts (1 - e) and all V tokens together e:  (1 - e) log p(token) + e / V * sum_v log p(v)
(Szegedy et al., arXiv:1512.00567). The logits of a batch never exist at once.

A chunk is recomputed in the backward pass, or, where the lever `head` is on the layer, its gradients are written out:

    dz = w (onehot' - softmax z) * bend,   bend = 1 - (z / cap)^2         dh = dz W        dW = dz' h

    total      the weights w of the targets are known, so dh and dW are found on the way forward
    logprobs   frozen: dh for w = 1 on the way forward, since rows do not touch each other; learned: when w is known

Over a base held in 8 bits, where the lever `int8` is on a layer that is frozen, `total` is computed in whole numbers
(`whole_head`); `logprobs`, whose values themselves are wanted, and what is computed without gradients are not.

All chunks use the same memory in turn: on a processor, taking new memory for each costs a quarter of the head's time.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from tunesmith.models.device import product_type, untyped
from tunesmith.models.whole import fitting
from tunesmith.models.whole_head import WholeHead

CHUNK_NUMBERS = 1 << 25
"""Logits that may exist at once; 128 MiB in float32."""
GPU_CHUNK_NUMBERS = 1 << 27
"""The same on a GPU, whose products wait for the weights where rows are few: 880 rows of 152,000 logits."""
LEAST_CHUNK = 16
PAGE, LINE = 4096, 64
"""Bytes of a page of memory, and of a line of a cache."""
BY_HAND = "gradients_by_hand"
"""The attribute of a layer whose gradients are written out."""
IN_WHOLE = "head_in_whole_numbers"
"""The attribute of a layer that holds its matrix in whole numbers, for gradients."""


class Head:
    """The last layer of a language model with the scale, bias and cap its architecture puts on logits."""

    def __init__(
        self,
        layer: nn.Module,
        scale: float = 1.0,
        cap: float | None = None,
        *,
        bias: Tensor | None = None,
        smoothing: float = 0.0,
    ) -> None:
        """bias: added to the logits, broadcast to [V]; smoothing: share of each target spread over all tokens."""
        self.layer = layer
        self.scale = scale
        self.cap = cap
        self.bias = bias
        self.smoothing = smoothing

    @classmethod
    def of(cls, model: PreTrainedModel, smoothing: float = 0.0) -> Head:
        """The head of a transformers model, with what its configuration says about logits."""
        config = model.config.get_text_config()
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        if _scaled_by_width(model):
            scale *= config.d_model**-0.5
        layer = model.get_output_embeddings()
        if layer is None:
            raise TypeError(f"{type(model).__name__} has no language-model head")
        bias = getattr(model, "final_logits_bias", None)
        return cls(layer, scale, getattr(config, "final_logit_softcapping", None), bias=bias, smoothing=smoothing)

    @property
    def entries(self) -> int:
        """V, how many tokens it gives a number."""
        return int(self.layer.weight.shape[0])  # type: ignore[union-attr, arg-type]

    @property
    def chunk(self) -> int:
        """How many targets' logits may exist at once."""
        weight = cast(Tensor, self.layer.weight)
        numbers = GPU_CHUNK_NUMBERS if weight.device.type == "cuda" else CHUNK_NUMBERS
        return max(LEAST_CHUNK, numbers // self.entries)

    @property
    def by_hand(self) -> bool:
        """Whether gradients are written out."""
        return vars(self.layer).get(BY_HAND, False) and type(self.layer) is nn.Linear

    def in_whole(self, hidden: Tensor, needs: tuple[bool, ...]) -> WholeHead | None:
        """The layer in whole numbers; None where it is not there, or more is asked of it than it computes.

        needs: whether hidden states, weight and bias have a gradient.
        """
        more = self.cap is not None or self.bias is not None or self.smoothing or self.layer.bias is not None
        if more or hidden.dtype != torch.float32 or needs[:3] != (True, False, False):
            return None
        return vars(self.layer).get(IN_WHOLE)

    def logits(self, hidden: Tensor) -> Tensor:
        """[…, d] to [..., V] in float32."""
        logits = self.layer(hidden).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.bias is not None:
            logits = logits + self.bias.view(-1)
        if self.cap is not None:
            logits = self.cap * torch.tanh(logits / self.cap)
        return logits

    def logprobs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """log p of each token [M] given its hidden state [M, d], in float32."""
        if len(tokens) == 0:
            return hidden.sum(dim=-1).float()
        if self.by_hand:
            layer = cast(nn.Linear, self.layer)
            return _Each.apply(self._typed(hidden), layer.weight, layer.bias, tokens, self)  # type: ignore[no-any-return]
        if not torch.is_grad_enabled():
            return torch.cat([self._logprobs(h, t) for h, t in self.chunks(hidden, tokens)])
        parts = [checkpoint(self._logprobs, h, t, use_reentrant=False) for h, t in self.chunks(hidden, tokens)]
        return torch.cat(parts)  # type: ignore[arg-type]

    def total(self, hidden: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
        """[] the sum of log p of tokens [M] times their weights [M], which get no gradient."""
        if self.by_hand and torch.is_grad_enabled() and len(tokens):
            layer = cast(nn.Linear, self.layer)
            return _Total.apply(  # type: ignore[no-any-return]
                self._typed(hidden), layer.weight, layer.bias, tokens, weights.detach(), self
            )
        return (self.logprobs(hidden, tokens) * weights).sum()

    def chunks(self, hidden: Tensor, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Hidden states and tokens in parts whose logits may exist at once, as even as they can be."""
        count = max(1, ceil(len(tokens) / self.chunk))
        size = max(1, ceil(len(tokens) / count))
        return list(zip(hidden.split(size), tokens.split(size), strict=True))

    def picked(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """[M] the logit, or log-probability, of each right token, with smoothing mixed with the mean of all."""
        found = logits.gather(-1, tokens[:, None])[:, 0]
        return torch.lerp(found, logits.mean(dim=-1), self.smoothing) if self.smoothing else found

    def _logprobs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        logits = self.logits(hidden)
        return self.picked(logits, tokens) - logits.logsumexp(dim=-1)

    def _typed(self, hidden: Tensor) -> Tensor:
        """Hidden states in the type that the product with the layer has: that of its weights, or autocast's."""
        kind = product_type(hidden)
        return hidden.to(cast(nn.Linear, self.layer).weight.dtype if kind == hidden.dtype else kind)


class _Slopes(NamedTuple):
    """What a sum of weighted log-probabilities has for gradients, None where none is wanted.

    values [M]: log p; hidden [M, d]; weight [V, d]; bias [V].
    """

    values: Tensor
    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def _room(like: Tensor, shape: tuple[int, int]) -> Tensor:
    """Room for logits [n, V], whose rows on a processor do not all begin at one place of a page.

    Where they do, as with 49,152 tokens, they drive each other out of its caches while a product is written.
    """
    count, width = shape
    aligned = like.device.type == "cpu" and width * like.element_size() % PAGE == 0
    return like.new_empty(count, width + (LINE // like.element_size() if aligned else 0))[:, :width]


class _Hand:
    """Values and gradients of a head, chunk by chunk in the same memory."""

    def __init__(self, head: Head, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor) -> None:
        self.head = head
        self.hidden = hidden
        self.weight = weight.to(hidden.dtype)
        self.bias = bias
        self.tokens = tokens
        shape = min(len(tokens), head.chunk), head.entries
        precise = hidden.dtype in (torch.float32, torch.float64)
        self.logits = _room(hidden, shape) if precise else None
        self.kind = hidden.dtype if precise else torch.float32
        self.cached = hidden.device.type == "cpu" and head.cap is None
        self.room = hidden.new_empty((0 if self.cached else shape[0], shape[1]), dtype=self.kind)

    def values(self) -> Tensor:
        """[M] log p alone."""
        return torch.cat([self._shares(*part, wanted=False)[0] for part in self._parts()]).float()

    def slopes(self, weights: Tensor | None, needs: tuple[bool, bool, bool]) -> _Slopes:
        """With weights of the targets [M], None for 1 each; needs: whether hidden states, weight and bias have one."""
        values: list[Tensor] = []
        hidden = torch.empty_like(self.hidden) if needs[0] else None
        weight = torch.zeros_like(self.weight, dtype=self.kind) if needs[1] else None
        bias = self.room.new_zeros(self.head.entries) if needs[2] else None
        start = 0
        for states, tokens in self._parts():
            rows = slice(start, start := start + len(tokens))
            own = self.room.new_ones(len(tokens)) if weights is None else weights[rows].to(self.kind)
            found, logits, shares, total = self._shares(states, tokens)
            values.append(found)
            aim, spread = self._bent(logits, shares, tokens, total)
            aim, own = aim * own * self.head.scale, own * self.head.scale / total
            if hidden is not None:
                right = self.weight[tokens].mul_(aim[:, None].to(states.dtype))
                hidden[rows] = right.sub_((spread.to(states.dtype) @ self.weight).mul_(own[:, None].to(states.dtype)))
            if weight is not None:
                weight.addmm_(spread.t(), states.to(spread.dtype) * own[:, None], alpha=-1)
                weight.index_add_(0, tokens, states.to(spread.dtype) * aim[:, None])
            if bias is not None:
                bias.addmv_(spread.t(), own, alpha=-1).index_add_(0, tokens, aim)
        return _Slopes(torch.cat(values).float(), hidden, weight, bias)

    def _parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.head.chunks(self.hidden, self.tokens))

    def _shares(self, states: Tensor, tokens: Tensor, *, wanted: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[n] log p, [n, V] logits, [n, V] shares and [n] what they add up to.

        Without a cap, where nobody asks for logits, shares take their place. wanted: whether shares are.
        """
        logits = self._logits(states)
        if self.cached:
            values, total = self._shares_in_cache(logits, tokens)
            return values, logits, logits, total
        known = torch.log_softmax(logits, dim=-1, out=self.room[: len(logits)])  # type: ignore[call-overload]
        values = self.head.picked(known, tokens)
        shares = torch.exp(known, out=logits if self.head.cap is None else known) if wanted else known
        return values, logits, shares, torch.ones_like(values)

    def _shares_in_cache(self, logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[n] log p and [n] the sums of shares, in the place of the logits, the largest as 1; a few rows at a time."""
        values, total = logits.new_empty(2, len(logits), 1)
        size = fitting(logits.shape[1])
        parts = (part.split(size) for part in (logits, tokens, values, total))
        for z, right, value, summed in zip(*parts, strict=True):
            picked, largest = self.head.picked(z, right)[:, None], z.amax(dim=1, keepdim=True)
            torch.sum(z.sub_(largest).exp_(), dim=1, keepdim=True, out=summed)
            torch.sub(picked, largest.add_(summed.log()), out=value)
        return values[:, 0], total[:, 0]

    def _logits(self, states: Tensor) -> Tensor:
        """[n, V]"""
        head = self.head
        if self.logits is None:
            logits = (states @ self.weight.t()).float()
        else:
            logits = torch.mm(states, self.weight.t(), out=self.logits[: len(states)])
        if self.bias is not None:
            logits.add_(self.bias)
        if head.scale != 1.0:
            logits.mul_(head.scale)
        if head.bias is not None:
            logits.add_(head.bias.view(-1))
        if head.cap is not None:
            logits.div_(head.cap).tanh_().mul_(head.cap)
        return logits

    def _bent(self, logits: Tensor, shares: Tensor, tokens: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """The slope of log p by the logits before their cap: `aim` [n] at the token, less `spread` [n, V] / total."""
        smoothing = self.head.smoothing
        aim = shares.new_full((len(tokens),), 1 - smoothing)
        if smoothing:
            shares.sub_(total[:, None], alpha=smoothing / self.head.entries)
        if self.head.cap is not None:
            bend = logits.div_(self.head.cap).square_().neg_().add_(1)
            aim = aim * bend.gather(-1, tokens[:, None])[:, 0]
            shares.mul_(bend)
        return aim, shares


class _Total(Function):
    """The weighted sum of log-probabilities []; its gradients are found on the way forward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, weights: Tensor, head: Head
    ) -> Tensor:
        whole = head.in_whole(hidden, ctx.needs_input_grad)
        with untyped(hidden):
            if whole is None:
                found = _Hand(head, hidden, weight, bias, tokens).slopes(weights, ctx.needs_input_grad[:3])
            else:
                values, slopes = whole.slopes(hidden, tokens, head.scale)
                found = _Slopes(values, slopes.mul_(weights[:, None]), None, None)
        ctx.save_for_backward(*found[1:])
        ctx.dtype = weight.dtype
        return (found.values * weights).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        hidden, weight, bias = (None if part is None else part * grads[0] for part in ctx.saved_tensors)
        return hidden, None if weight is None else weight.to(ctx.dtype), bias, None, None, None


class _Each(Function):
    """Log p of each target [M]. Frozen, slopes for a weight of 1 are kept; learned, they are found later."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, head: Head) -> Tensor:
        ctx.head, ctx.learns = head, any(ctx.needs_input_grad[1:3])
        with untyped(hidden):
            hand = _Hand(head, hidden, weight, bias, tokens)
            if ctx.learns or not ctx.needs_input_grad[0]:
                ctx.save_for_backward(hidden, weight, bias, tokens)
                return hand.values()
            found = hand.slopes(None, (True, False, False))
        ctx.save_for_backward(found.hidden)
        return found.values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        if not ctx.learns:
            (slopes,) = ctx.saved_tensors
            return (grads[0][:, None] * slopes).to(slopes.dtype), None, None, None, None
        hidden, weight, bias, tokens = ctx.saved_tensors
        found = _Hand(ctx.head, hidden, weight, bias, tokens).slopes(grads[0], ctx.needs_input_grad[:3])
        own = None if found.weight is None else found.weight.to(weight.dtype)
        return found.hidden, own, found.bias, None, None


def _scaled_by_width(model: PreTrainedModel) -> bool:
    """Whether states are scaled by 1 / sqrt(d_model) before the head, as T5 does where its embeddings are tied."""
    config = model.config
    tied_only = config.model_type in ("umt5", "switch_transformers") and config.tie_word_embeddings
    return bool(getattr(config, "scale_decoder_outputs", tied_only))
