"""Batches for generation: prompts of like length side by side, padded, within a token budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Job:
    """A prompt as tokens, its place in what was asked, and how many tokens its answer may have.

    goes_on: whether the answer goes on with the prompt's own text, so that a space between them belongs to it; worn:
    names of the adapters that it is answered with, where there are several on one base.
    """

    index: int
    tokens: tuple[int, ...]
    room: int
    goes_on: bool = False
    worn: tuple[str, ...] = ()

    @property
    def lead(self) -> tuple[int, ...]:
        """Tokens that an answer is decoded behind, since decoders drop a space at the beginning of a text."""
        return self.tokens[-1:] if self.goes_on else ()

    @property
    def cost(self) -> int:
        """Tokens in memory when the answer is as long as it may be."""
        return len(self.tokens) + self.room


def pack(jobs: Sequence[Job], budget: int, *, pad: bool = True) -> list[list[Job]]:
    """Jobs in batches of at most `budget` tokens (one job at least), the longest first.

    pad: whether prompts of different lengths may share a batch. Jobs with different room never do, since a batch
    ends for all its rows at once.
    """
    batches: list[list[Job]] = []
    for job in sorted(jobs, key=lambda job: (-len(job.tokens), job.index)):
        if not batches or not _fits(batches[-1], job, budget, pad):
            batches.append([])
        batches[-1].append(job)
    return batches


def _fits(batch: Sequence[Job], job: Job, budget: int, pad: bool) -> bool:
    first = batch[0]
    if job.room != first.room or (not pad and len(job.tokens) != len(first.tokens)):
        return False
    return (len(batch) + 1) * first.cost <= budget


def left_padded(jobs: Sequence[Job], filler: int, device: torch.device, common: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens [B, L] and mask [B, L] with every prompt's end in the last column, from which the answer goes on.

    common: how many tokens at the start of all prompts stand in the first columns, before the padding.
    """
    return _padded(jobs, filler, device, common)


def right_padded(jobs: Sequence[Job], filler: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens [B, L] and mask [B, L] with every prompt's start in the first column, where an encoder counts from."""
    return _padded(jobs, filler, device, None)


def _padded(jobs: Sequence[Job], filler: int, device: torch.device, first: int | None) -> tuple[Tensor, Tensor]:
    """first: how many tokens of each prompt stand before the padding; None for all of them."""
    longest = max(len(job.tokens) for job in jobs)
    tokens = torch.full((len(jobs), longest), filler, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, job in enumerate(jobs):
        own = torch.tensor(job.tokens)
        before = len(own) if first is None else first
        behind = longest - len(own) + before
        tokens[row, :before], tokens[row, behind:] = own[:before], own[before:]
        mask[row, :before] = mask[row, behind:] = 1
    return tokens.to(device), mask.to(device)
