"""Greedy answers with Medusa heads: several tokens are drafted at once and checked by the base in one pass.

    state at the last token ─▶ base: next token (sure)   heads: those after it (a draft)
              ▲                               └──── one pass of the base over all of them ────┘
              └── state after the last token that the base would have chosen itself; the rest is forgotten

Only tokens that the base finds likeliest itself are kept, so the answer is that of plain greedy generation, token for
token, up to rounding: one pass over several tokens adds in another order than several passes over one (Cai et al.,
arXiv:2401.10774; verification as in Stern et al., arXiv:1811.03115). Prompts are answered one after the other.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import nullcontext
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from transformers import DynamicCache, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from tunesmith.core.problem import Problem
from tunesmith.core.run import ModelSpec
from tunesmith.data.tokenizer import Codec
from tunesmith.generate.batches import Job
from tunesmith.generate.engines import Answer, Ask, Engine
from tunesmith.generate.engines.local import LocalAnswers
from tunesmith.generate.opened import open_model
from tunesmith.generate.sampling import Sampling
from tunesmith.generate.stops import StopTexts
from tunesmith.methods.medusa import heads_of
from tunesmith.models.likelihood import Head


class Medusa(Engine):
    """A model in this process that drafts with its Medusa heads; greedy answers only."""

    heads: Annotated[int, Field(gt=0)] | None = None
    """Draft with so many of the heads; by default with all."""

    def open(self, model: ModelSpec) -> MedusaAnswers:
        opened = open_model(model)
        return self.bind(opened.trained, opened.codec)

    def bind(self, model: torch.nn.Module, codec: Codec) -> MedusaAnswers:
        """Answers of a model with heads that is in memory already.

        Raises:
            Problem: it has no heads, or fewer than asked for, or keeps a state that cannot be taken back.
        """
        has = len(heads_of(model))
        if self.heads is not None and self.heads > has:
            raise Problem("engine.medusa.heads", f"is {self.heads}, and the model has {has}", f"Use {has} or less")
        answers = MedusaAnswers(model, codec, self.heads or has)
        if not answers.new_cache().is_croppable:
            what = f"cannot take tokens back from the state of {type(answers.base).__name__}"
            raise Problem("engine medusa", what, "Use the engine local")
        return answers


class MedusaAnswers(LocalAnswers):
    """A model with heads at work. passes: of the base over drafts; accepted: tokens that these gave."""

    def __init__(self, model: torch.nn.Module, codec: Codec, drafting: int) -> None:
        super().__init__(model, codec, nullcontext, batch_tokens=1)
        self.heads = heads_of(model)
        self.drafting = drafting
        self.passes = 0
        self.accepted = 0

    @property
    def mean_accepted(self) -> float:
        """Tokens that one pass over a draft gave, on average; plain generation has 1."""
        return self.accepted / self.passes if self.passes else 0.0

    @property
    def told(self) -> str:
        """What drafting gave so far, for a person; empty before the first answer."""
        if not self.passes:
            return ""
        return f"Medusa: {self.mean_accepted:.2f} tokens a pass of the base on average, 1 without drafts"

    def answer(self, asks: Sequence[Ask], sampling: Sampling) -> Iterator[Answer]:
        _check(sampling)
        return super().answer(asks, sampling)

    def stream(self, ask: Ask, sampling: Sampling) -> Generator[str, None, None]:
        _check(sampling)
        return super().stream(ask, sampling)

    def new_cache(self) -> DynamicCache:
        """An empty cache of the model, from which tokens can be taken back."""
        cache = DynamicCache(config=self.base.config)
        cache.activate_past_recording()
        return cache

    def _generate(
        self,
        batch: Sequence[Job],
        sampling: Sampling,
        pipe: BaseStreamer | None = None,
        closed: StoppingCriteria | None = None,
    ) -> Tensor:
        rows = []
        with self._ready():
            for job in batch:
                if pipe is not None:
                    pipe.put(torch.tensor(job.tokens))
                rows.append(list(self._told(job, sampling, pipe, closed)))
        longest = max(len(row) for row in rows)
        return torch.tensor([row + [self.codec.pad] * (longest - len(row)) for row in rows])

    def _told(
        self, job: Job, sampling: Sampling, pipe: BaseStreamer | None, closed: StoppingCriteria | None
    ) -> Iterator[int]:
        """The answer's tokens, up to an end token, a stop text, the longest answer or a reader who is gone."""
        stop = StopTexts(sampling.stop, self.codec.decode, 0) if sampling.stop else None
        told: list[int] = []
        for token in self._tokens(job):
            told.append(token)
            yield token
            if pipe is not None:
                pipe.put(torch.tensor([token]))
            row: Any = torch.tensor([told])
            done = [bool(one(row, None)[0]) for one in (stop, closed) if one is not None]
            if token in self.codec.end_tokens or any(done) or len(told) == job.room:
                return

    def _tokens(self, job: Job) -> Iterator[int]:
        """The tokens of plain greedy generation, without an end."""
        cache, head, left = self.new_cache(), Head.of(self.base), job.room
        state = self._states(list(job.tokens), cache)[-1:]
        cache.crop(0)
        while True:
            draft = self._draft(head, state, left)
            if left == 1 or draft[0] in self.codec.end_tokens:
                yield draft[0]
                return
            states = self._states(draft, cache)
            chosen = head.logits(states).argmax(-1).tolist()
            kept = next((n for n in range(1, len(draft)) if draft[n] != chosen[n - 1]), len(draft))
            self.passes, self.accepted = self.passes + 1, self.accepted + kept
            cache.crop(kept - len(draft))
            state = states[kept - 1 : kept]
            left -= kept
            yield from draft[:kept]

    def _draft(self, head: Head, state: Tensor, left: int) -> list[int]:
        """The next token by the base and those after it by the heads, at most `left` and up to an end token.

        state: [1, d].
        """
        draft = [int(head.logits(state).argmax(-1))]
        for number in range(min(self.drafting, left - 1)):
            if draft[-1] in self.codec.end_tokens:
                break
            draft.append(int(self.heads.guesses(self.base, state, number)))
        return draft

    def _states(self, tokens: list[int], cache: DynamicCache) -> Tensor:
        """[L, d] the states of the last layer at some more tokens, which the cache holds afterwards."""
        decoder = getattr(self.base, self.base.base_model_prefix)
        row = torch.tensor([tokens], device=self.base.device)
        return decoder(input_ids=row, past_key_values=cache, use_cache=True).last_hidden_state[0]


def _check(sampling: Sampling) -> None:
    if sampling.temperature > 0:
        what = f"is {sampling.temperature:g}, and drafts are checked against the likeliest token only"
        raise Problem("temperature", what, "Set it to 0, or use the engine local")
    if sampling.repetition_penalty != 1:
        what = f"is {sampling.repetition_penalty:g}, and drafts are made without one"
        raise Problem("repetition_penalty", what, "Set it to 1, or use the engine local")
