"""The routers of a mixture: for each layer a matrix with a row an expert, from prompts or by chance.

    hidden        r_e = u(m(positive) - m(negative)),  m: mean over prompts of the hidden state that enters the layer,
                  at the prompt's last token (`hidden_avg`: its mean over the prompt's tokens)
    cheap_embed   r_e = u(u(s(positive)) - u(s(negative))),  s: sum of the token embeddings of all prompts
    random        normal numbers;  uniform_random: between -1/sqrt(d) and 1/sqrt(d), for hidden states of d numbers

u scales to length 1. Prompts are read with the base's tokenizer, after its first token of texts if it names one. These
are the rules of mergekit-moe, but for padding: prompts are read one by one here, so no padding enters a mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.core.problem import Problem
from tunesmith.merge.engine import Progress, generator
from tunesmith.merge.experts.recipe import RANDOM, ExpertSpec
from tunesmith.merge.inputs import Model
from tunesmith.merge.methods import Array

if TYPE_CHECKING:
    from tunesmith.data.tokenizer import Codec

SIMILAR = 5.0
"""Condition of a router above which its experts are hardly told apart; mergekit-moe warns at the same."""


class Routers:
    """Routers [layers, experts, hidden] of a mixture, found when they are first asked for."""

    def __init__(self, base: Model, experts: Sequence[ExpertSpec], mode: str, seed: int, listen: Progress) -> None:
        self.base = base
        self.experts = experts
        self.mode = mode
        self.seed = seed
        self.listen = listen

    @cached_property
    def all(self) -> Array:
        """All of them.

        Raises:
            Problem: the base cannot be read or run, or a prompt comes to nothing.
        """
        layers, width = self.base.stack.count, int(self.base.config["hidden_size"])
        if self.mode in RANDOM:
            shape = (len(self.experts), width)
            return np.stack([self._drawn(number, shape) for number in range(layers)])
        codec = self._codec
        if self.mode == "cheap_embed":
            rows = [self._embedded(codec, expert) for expert in self.experts]
            return np.repeat(np.stack(rows)[None], layers, axis=0)
        return self._hidden(codec)

    @property
    def alike(self) -> list[int]:
        """The layers whose routers hardly tell the experts apart."""
        found = self.all.astype(np.float64)
        return [number for number, router in enumerate(found) if np.linalg.cond(router) > SIMILAR]

    @cached_property
    def _codec(self) -> Codec:
        from tunesmith.data.tokenizer import Codec

        return Codec.load(self.base.tokenizer)

    def _drawn(self, layer: int, shape: tuple[int, int]) -> Array:
        draw = generator(self.seed, f"{self.base.stack.prefix}{layer}.router", 0, 0)
        if self.mode == "random":
            return draw.standard_normal(shape, np.float32)
        bound = shape[1] ** -0.5
        return draw.uniform(-bound, bound, shape).astype(np.float32)

    def _embedded(self, codec: Codec, expert: ExpertSpec) -> Array:
        """The direction of an expert's token embeddings."""
        found = _unit(self._sum(codec, expert.positive_prompts))
        if expert.negative_prompts:
            found = found - _unit(self._sum(codec, expert.negative_prompts))
        return _unit(found)

    def _sum(self, codec: Codec, prompts: Sequence[str]) -> Array:
        ids = np.array([token for prompt in prompts for token in tokens(codec, prompt)], np.intp)
        name = self.base.embedding
        if name is None:
            raise Problem(str(self.base), "has no embedding that is known here", "Set gate_mode: hidden")
        return self.base.gather(name, ids, np.float32).sum(axis=0)

    def _hidden(self, codec: Codec) -> Array:
        """Routers from what the layers of the base see of the prompts; one layer at a time is in memory."""
        from tunesmith.merge.proof import opened

        if self.base.adaption is not None:
            what = f"has an adapter on it, and gate_mode {self.mode} runs the base"
            raise Problem("base_model", what, "Fold it first (tunesmith fold), or set gate_mode: cheap_embed")
        rows: list[Array] = []
        with opened(self.base.folder) as model:
            for expert in self.experts:
                found = self._mean(model, codec, expert.positive_prompts)
                if expert.negative_prompts:
                    found = found - self._mean(model, codec, expert.negative_prompts)
                rows.append(_unit(found))
                self.listen("experts with a router", len(rows), len(self.experts))
        return np.stack(rows, axis=1)

    def _mean(self, model: Any, codec: Codec, prompts: Sequence[str]) -> Array:
        """The mean over prompts of the hidden states [layers, hidden] that enter the layers."""
        from tunesmith.merge.proof import hidden_states

        states = [hidden_states(model, tokens(codec, prompt)) for prompt in prompts]
        seen = [each.mean(axis=1) if self.mode == "hidden_avg" else each[:, -1] for each in states]
        return np.mean(seen, axis=0)


def tokens(codec: Codec, prompt: str) -> list[int]:
    """The ids of a prompt, special tokens in it read as such, after the first token of texts if there is one."""
    first = dict(codec.parts.specials).get("bos_token", "")
    return codec.locate(first + prompt, ())[0].tolist()


def _unit(rows: Array) -> Array:
    """Each row scaled to length 1; a row of zeros stays."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.maximum(length, 1e-8)
