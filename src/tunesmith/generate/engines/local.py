"""Answers from a model in this process, through transformers' `generate`.

    asks ─▶ tokens ─▶ batches by length, padded on the left ─▶ generate ─▶ cut at end tokens and stop texts ─▶ answers

Prompts for an encoder are padded on the right, and what is generated begins with the decoder's start token. A prompt
that stands in a batch several times is read once, and so is what all prompts of a batch begin with
(`generate/prefill.py`).

What a model's own generation settings say (temperature, penalties …) is not used: only `Sampling` counts, so that
the same options mean the same for every model.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from tunesmith.core.run import ModelSpec
from tunesmith.data.tokenizer import Codec
from tunesmith.generate.asks import answer_of, job_of
from tunesmith.generate.batches import Job, left_padded, pack, right_padded
from tunesmith.generate.draws import processors
from tunesmith.generate.engines import Answer, Answers, Around, Ask, Engine
from tunesmith.generate.held import held_twin, hold
from tunesmith.generate.opened import open_model, quiet
from tunesmith.generate.prefill import common_start, read_once, refused, repeated, start_read, start_refused
from tunesmith.generate.sampling import Sampling
from tunesmith.generate.stops import Holder, StopTexts
from tunesmith.generate.stream import pull
from tunesmith.models.ancestor import Ancestor, ancestor_of, length_of
from tunesmith.models.encoder_decoder import start_token


class Local(Engine):
    """A model in this process."""

    follows: ClassVar[bool] = True

    batch_tokens: Annotated[int, Field(gt=0)] = 16384
    """Tokens of prompts and answers in memory at once; at least one prompt is always taken."""
    weights: Literal["plain", "int8", "int4"] = "plain"
    """On a CPU, compute with the base's matrices rounded to 8 or 4 bits: faster, and answers may differ a little."""

    def open(self, model: ModelSpec) -> LocalAnswers:
        opened = open_model(model)
        hold(opened.trained, self.weights)
        return self.bind(opened.trained, opened.codec)

    def follow(self, model: nn.Module, codec: Codec, around: Around = nullcontext) -> LocalAnswers:
        return self.bind(held_twin(model, self.weights), codec, around)

    def bind(self, model: nn.Module, codec: Codec, around: Around = nullcontext) -> LocalAnswers:
        """Answers of a model that is in memory already.

        model: a transformers model or PEFT's wrapper of one, whose weights are taken as they are held; around: a
        context to generate in, such as the one in which the adapter is off.
        """
        return LocalAnswers(model, codec, around, self.batch_tokens)


class LocalAnswers(Answers):
    """A model in this process at work; one call generates at a time.

    turn: what a call holds while it generates, where several models share it.
    """

    def __init__(
        self, model: nn.Module, codec: Codec, around: Around, batch_tokens: int, turn: threading.Lock | None = None
    ) -> None:
        self.model: Any = model
        self.base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        self.codec = codec
        self.around = around
        self.batch_tokens = batch_tokens
        self._one_at_a_time = turn or threading.Lock()
        # settings that say how an answer is framed, not how it is drawn
        prefix = codec.parts.prefix
        opening = {"forced_bos_token_id": prefix[0]} if prefix else {}
        self._opening = {"decoder_start_token_id": start_token(self.base), **opening} if codec.encoder_decoder else {}

    @property
    def context(self) -> int | None:
        """Tokens that prompt and answer may have together; None where the architecture sets no limit.

        A soft prompt takes its places also where it is switched off, so that both sides of a comparison have as many.
        """
        limit = getattr(self.base.config.get_text_config(), "max_position_embeddings", None)
        return None if limit is None else limit - length_of(self.model)

    @cached_property
    def reads_again(self) -> str | None:
        """Why a prompt is read anew for each of its answers; None where it is read once for all."""
        with self._ready():
            ancestor = ancestor_of(self.model)
            pads = ancestor.pads(self.base)
            return refused(self.base, self._called(ancestor), self._prompts(ancestor), pads, self._opening)

    @cached_property
    def starts_again(self) -> str | None:
        """Why what prompts begin with is read anew for each of them; None where it is read once for all."""
        if self.reads_again is not None:
            return self.reads_again
        with self._ready():
            ancestor = ancestor_of(self.model)
            if ancestor.length or self.codec.encoder_decoder:
                return "prompts begin with learned vectors, or are those of an encoder"
            return start_refused(self.base, self._called(ancestor), ancestor.pads(self.base))

    def answer(self, asks: Sequence[Ask], sampling: Sampling) -> Iterator[Answer]:
        jobs: list[Job] = []
        for index, ask in enumerate(asks):
            again = index > 0 and ask is asks[index - 1]
            jobs.append(replace(jobs[-1], index=index) if again else self.job(index, ask, sampling))
        return self._answers(self.packed(jobs, sampling), sampling)

    def stream(self, ask: Ask, sampling: Sampling) -> Generator[str, None, None]:
        return self.pieces(self.job(0, ask, sampling), sampling)

    def packed(self, jobs: Sequence[Job], sampling: Sampling) -> list[list[Job]]:
        """The jobs in batches that this model can answer at once."""
        # the penalty counts padding as tokens seen, so it must meet none
        pad = sampling.repetition_penalty == 1.0 and ancestor_of(self.model).pads(self.base)
        return pack(jobs, self.batch_tokens, pad=pad)

    def drawn(self, batch: Sequence[Job], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        """Each job's index, which its draws follow from, and its answer."""
        rows = self._generate(batch, sampling).tolist()
        return ((job.index, answer_of(job, row, sampling, self.codec)) for job, row in zip(batch, rows, strict=True))

    def _answers(self, batches: Sequence[Sequence[Job]], sampling: Sampling) -> Iterator[Answer]:
        ready: dict[int, Answer] = {}
        following = 0
        for batch in batches:
            ready.update(self.drawn(batch, sampling))
            while following in ready:
                yield ready.pop(following)
                following += 1

    def pieces(self, job: Job, sampling: Sampling) -> Generator[str, None, None]:
        """The text of one job's answer, as `stream` gives it."""
        decoder, holder = self.codec.decode_stream(), Holder(sampling.stop)
        ends = self.codec.end_tokens
        for token in job.lead:
            decoder.add(token)
        tokens = pull(lambda pipe, closed: self._generate([job], sampling, pipe, closed))
        try:
            for token in tokens:
                if token not in ends and (piece := holder.push(decoder.add(token))):
                    yield piece
            if rest := holder.push(decoder.rest()) + holder.flush():
                yield rest
        finally:
            tokens.close()

    def _generate(
        self,
        batch: Sequence[Job],
        sampling: Sampling,
        pipe: BaseStreamer | None = None,
        closed: StoppingCriteria | None = None,
    ) -> Tensor:
        """The tokens [B, L] that follow the prompts of a batch; rows that end early are filled up at their end."""
        prompts, rows = _distinct(batch)
        once, common = len(prompts) < len(batch) and self.reads_again is None, self._common(prompts)
        criteria = StoppingCriteriaList([closed] if closed else [])
        with self._ready():
            inputs, begun = self._inputs(prompts, rows, once, common)
            if sampling.stop:
                criteria.append(StopTexts(sampling.stop, self.codec.decode, begun))
            out = self._called(ancestor_of(self.model)).generate(
                **inputs,
                generation_config=self._config(sampling, batch[0].room),
                logits_processor=processors(sampling, [job.index for job in batch], self.base.device),
                stopping_criteria=criteria,
                streamer=pipe,
                **self._further(batch),
            )
        return out[:, begun:].cpu()

    def _inputs(
        self, prompts: Sequence[Job], rows: Sequence[int], once: bool, common: int
    ) -> tuple[dict[str, Any], int]:
        """What `generate` is called with, and where in its rows the answers begin.

        rows: the prompt of each; once: whether a prompt is read once for all its rows; common: how many tokens all
        prompts begin with that are read once for all of them.
        """
        sides, ancestor = self.codec.encoder_decoder, ancestor_of(self.model)
        if sides:
            tokens, mask = right_padded(prompts, self.codec.pad, self.base.device)
        else:
            tokens, mask = left_padded(prompts, self.codec.pad, self.base.device, common)
        inputs = self._prompts(ancestor)(tokens, mask)
        begun = 1 if sides else inputs["input_ids"].shape[1]
        places = torch.tensor(rows, device=self.base.device)
        model = self._called(ancestor)
        if common:
            inputs = start_read(self.base, model, inputs, common)
        if once or common:
            return read_once(self.base, model, inputs, places, **self._further(prompts)), begun
        return (inputs if len(rows) == len(prompts) else repeated(inputs, places)), begun

    def _common(self, prompts: Sequence[Job]) -> int:
        """Tokens that all prompts begin with and that are read once for them; 0 where each is read whole.

        A window is counted in columns of a batch, and padding behind the common start would stand in it.
        """
        length = common_start(prompts)
        window = getattr(self.base.config.get_text_config(), "sliding_window", None)
        if not length or self._further(prompts) or max(job.cost for job in prompts) > (window or math.inf):
            return 0
        return length if self.starts_again is None else 0

    def _prompts(self, ancestor: Ancestor) -> Callable[[Tensor, Tensor], dict[str, Any]]:
        return lambda tokens, mask: ancestor.prompts(self.base, tokens, mask)

    def _called(self, ancestor: Ancestor) -> Any:
        """What runs: PEFT's wrapper would put a soft prompt before the rows once more."""
        return self.base if ancestor.length else self.model

    def _further(self, batch: Sequence[Job]) -> dict[str, Any]:
        """What else `generate` is called with."""
        return {}

    def _config(self, sampling: Sampling, room: int) -> GenerationConfig:
        return GenerationConfig(
            max_new_tokens=room,
            do_sample=False,  # what is drawn is the largest score, after `processors`
            repetition_penalty=sampling.repetition_penalty,
            eos_token_id=sorted(self.codec.end_tokens) or None,
            pad_token_id=self.codec.pad,
            use_cache=True,
            **self._opening,
        )

    def job(self, index: int, ask: Ask, sampling: Sampling) -> Job:
        """An ask as tokens.

        Raises:
            Problem: it leaves no room for an answer.
        """
        return job_of(index, ask, sampling, self.codec, self.context)

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """Alone with the model, in evaluation mode, with no generation settings but ours."""
        with ExitStack() as stack:
            stack.enter_context(self._one_at_a_time)
            stack.enter_context(quiet(self.model))
            stack.enter_context(self.around())
            stack.enter_context(_own_settings({self.model, self.base}))
            yield


@contextmanager
def _own_settings(models: set[Any]) -> Iterator[None]:
    """Put aside what models bring as generation settings, which `generate` would mix into ours."""
    kept = {model: model.generation_config for model in models if hasattr(model, "generation_config")}
    try:
        for model in kept:
            model.generation_config = GenerationConfig()
        yield
    finally:
        for model, config in kept.items():
            model.generation_config = config


def _distinct(batch: Sequence[Job]) -> tuple[list[Job], list[int]]:
    """The jobs whose prompts differ, and for each job the place of its prompt among them."""
    places: dict[tuple[tuple[int, ...], tuple[str, ...]], int] = {}
    rows = [places.setdefault((job.tokens, job.worn), len(places)) for job in batch]
    return [batch[rows.index(place)] for place in range(len(places))], rows
