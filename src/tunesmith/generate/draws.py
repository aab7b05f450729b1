"""Draws: which token each row takes, by chances of its own that do not depend on the rows beside it.

    t = argmax_i  log p_i - log e_i,   e_i ~ Exp(1)

finds token i with probability p_i (the Gumbel-max trick; Maddison et al., arXiv:1411.0030). The e of a row come from a
generator of its own, seeded by the call's seed and the row's index, so an answer stays the same however the asks of a
call were put into batches, up to the rounding of batches of other shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.generation.logits_process import LogitsProcessor

from tunesmith.generate.sampling import Sampling


class Race(LogitsProcessor):
    """Adds to each row's scores what makes the largest of them a draw."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """[B, V] scores, of which the largest is taken."""
        times = torch.empty_like(scores)
        for row, generator in zip(times, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores - times.clamp_min_(torch.finfo(times.dtype).tiny).log_()


def processors(sampling: Sampling, indexes: Sequence[int], device: torch.device) -> LogitsProcessorList:
    """What `generate` does to the scores [B, V] of rows with these indexes before it takes the largest."""
    if sampling.temperature == 0:
        return LogitsProcessorList()
    parts: list[LogitsProcessor] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k:
        parts.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        parts.append(TopPLogitsWarper(sampling.top_p))
    return LogitsProcessorList([*parts, Race([seed_of(sampling.seed, index) for index in indexes], device)])


def seed_of(seed: int, index: int) -> int:
    """A seed for each answer of a call, far from those of neighbouring calls."""
    return (seed * 1_000_003 + index) % (1 << 63)
