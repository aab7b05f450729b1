"""From what is asked to tokens, and from drawn tokens to an answer: the same for every engine that draws tokens."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.core.problem import Problem
from tunesmith.core.records import Text
from tunesmith.data.template import TemplateRefusal
from tunesmith.data.tokenizer import Codec
from tunesmith.generate.batches import Job
from tunesmith.generate.engines import Answer, Ask
from tunesmith.generate.sampling import Sampling
from tunesmith.generate.stops import cut


def job_of(index: int, ask: Ask, sampling: Sampling, codec: Codec, context: int | None) -> Job:
    """An ask as tokens; context: how many tokens prompt and answer may have together, None for any number.

    Raises:
        Problem: it leaves no room for an answer.
    """
    where = f"prompt {index + 1}"
    tokens = _encode(ask, codec, where)
    sides = codec.encoder_decoder
    room = sampling.max_tokens
    if context is not None:
        left = context - len(tokens)
        room = min(room, context - 1 if sides and left >= 0 else left)
    if room <= 0:
        whole = "" if sides else " with its answer"
        what = f"has {len(tokens):,} tokens, and the model reads {context:,}{whole}"
        raise Problem(where, what, "Shorten it, or take a model with a longer context")
    return Job(index, tuple(tokens), room, goes_on=isinstance(ask, Text) and not sides)


def answer_of(job: Job, tokens: Sequence[int], sampling: Sampling, codec: Codec) -> Answer:
    """What was drawn for a job, up to the first end token or stop text."""
    ends = codec.end_tokens
    end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    before = codec.decode(job.lead)
    text, stopped = cut(codec.decode([*job.lead, *tokens[:end]])[len(before) :], sampling.stop)
    drawn = list(tokens[: end + 1])
    if stopped:  # what follows in the row is filling, since other rows of the batch went on
        while drawn and drawn[-1] == codec.pad:
            drawn.pop()
    return Answer(text, tuple(drawn), "stop" if stopped or end < len(tokens) else "length")


def _encode(ask: Ask, codec: Codec, where: str) -> list[int]:
    if isinstance(ask, Text):
        if codec.encoder_decoder:
            return codec.encode_framed(ask.text)
        return [*codec.parts.prefix, *codec.encode_text(ask.text)] or [codec.pad]
    try:
        return codec.encode_chat(ask.messages, ask.tools, add_generation_prompt=True)
    except TemplateRefusal as refusal:
        raise Problem(where, f"the chat template refuses it: {refusal}", "Change the chat or the template") from refusal
