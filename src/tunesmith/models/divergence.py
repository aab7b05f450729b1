"""How far one model's distributions of the next token are from another's, over the whole vocabulary and in chunks:
the logits of a batch never exist at once.

    p  teacher    q  student    both softmax(z / temperature)    m = beta p + (1 - beta) q

    forward   KL(p | q) = sum_v p log(p / q)          covers all that the teacher may say
    reverse   KL(q | p) = sum_v q log(q / p)          keeps to what the teacher finds likely
    jsd       beta KL(p | m) + (1 - beta) KL(q | m)   between the two

(Hinton et al., arXiv:1503.02531; Gu et al., arXiv:2306.08543; Agarwal et al., arXiv:2306.13649.)
Each is times temperature squared, so that its gradients keep their size whatever the temperature (Hinton et al.). A
chunk is computed again in the backward pass; what is kept of it are its hidden states.

Heads may have more rows than there are tokens, and not equally many of them (padding for the hardware): distributions
are over the rows that both have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tunesmith.models.likelihood import CHUNK_NUMBERS, LEAST_CHUNK, Head

BUFFERS = 4
"""How many times the logits of a chunk are held at once, for both models and for the gradient, roughly."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """Which divergence. beta: the teacher's share of the mixture in `jsd`, between 0 and 1."""

    form: Literal["forward", "reverse", "jsd"] = "forward"
    beta: float = 0.5
    temperature: float = 1.0

    def between(self, teacher: Tensor, student: Tensor) -> Tensor:
        """[...] the divergence of logits [..., V] of a teacher and a student."""
        p, q = ((logits / self.temperature).log_softmax(dim=-1) for logits in (teacher, student))
        return self.temperature**2 * self._of(p, q)

    def _of(self, p: Tensor, q: Tensor) -> Tensor:
        if self.form == "forward":
            return _kl(p, q)
        if self.form == "reverse":
            return _kl(q, p)
        m = torch.logaddexp(p + math.log(self.beta), q + math.log1p(-self.beta))
        return self.beta * _kl(p, m) + (1 - self.beta) * _kl(q, m)


class Compared(NamedTuple):
    """What there is to say of a student beside its teacher at each target, in float32.

    divergence [M]; logprobs [M]: the student's log-probability of the right token, without temperature; agreement
    [M]: 1 where both find the same token likeliest.
    """

    divergence: Tensor
    logprobs: Tensor
    agreement: Tensor


class Side(NamedTuple):
    """A model at the targets: its head, and the hidden states [M, d] that the head reads."""

    head: Head
    hidden: Tensor


def compare(student: Side, teacher: Side, tokens: Tensor, divergence: Divergence, *, likelihood: bool) -> Compared:
    """The student beside the teacher at targets whose right tokens are `tokens` [M]; the teacher gets no gradient.

    likelihood: whether log-probabilities have a gradient too. What has one must be used, or its chunks stay in memory.
    """
    if len(tokens) == 0:
        nothing = student.hidden.sum(dim=-1).float()
        return Compared(nothing, nothing, nothing.detach())
    entries = min(side.head.entries for side in (student, teacher))
    size = max(LEAST_CHUNK, CHUNK_NUMBERS // (BUFFERS * entries))

    def chunk(own: Tensor, other: Tensor, wanted: Tensor) -> Compared:
        mine = student.head.logits(own)
        with torch.no_grad():
            theirs = teacher.head.logits(other)
        found = divergence.between(theirs[..., :entries], mine[..., :entries])
        with torch.set_grad_enabled(likelihood and torch.is_grad_enabled()):
            logprobs = mine.gather(-1, wanted[:, None])[:, 0] - mine.logsumexp(dim=-1)
        agreement = (theirs[..., :entries].argmax(dim=-1) == mine[..., :entries].argmax(dim=-1)).float()
        return Compared(found, logprobs, agreement)

    splits = zip(student.hidden.split(size), teacher.hidden.split(size), tokens.split(size), strict=True)
    parts = [_recomputed(chunk, *part) for part in splits]
    return Compared(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _recomputed(chunk: Callable[..., Compared], *inputs: Tensor) -> Compared:
    if not torch.is_grad_enabled():
        return chunk(*inputs)
    return checkpoint(chunk, *inputs, use_reentrant=False)  # type: ignore[no-any-return]


def _kl(of: Tensor, to: Tensor) -> Tensor:
    """[...] sum over the last axis of p log(p / q), from log p and log q."""
    return F.kl_div(to, of, reduction="none", log_target=True).sum(dim=-1)
