"""Sampling: how the next token is chosen."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tunesmith.core.options import Options


class Sampling(Options):
    """How an answer is drawn. The defaults are greedy, so that the same prompt gives the same answer."""

    max_tokens: Annotated[int, Field(gt=0, le=1_000_000)] = 256
    """The longest answer, in tokens."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 takes the likeliest token; 1 samples from the model's own distribution."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the smallest set of tokens with this share of the probability."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample from so many likeliest tokens; 0 for all."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Above 1, tokens already seen become less likely (arXiv:1909.05858)."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; they are not part of it."""
    seed: int = 0
    """The draw follows from it."""
