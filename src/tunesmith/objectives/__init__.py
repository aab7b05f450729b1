"""The contract of objectives: what to get better at, as a sum and a count. One file an objective.

micro-batches of a step ─▶ round ─▶ groups, one optimizer update each ─▶ loss (a sum), count
                      (sampling, rewards, statistics of the whole step; no gradient)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tunesmith.core.plugins import Plugin
from tunesmith.core.records import Record
from tunesmith.core.run import TrainSpec
from tunesmith.data.encode import Rules
from tunesmith.data.prepare import MAX_TOKENS
from tunesmith.data.store import TokenStore
from tunesmith.models.forest import Batch
from tunesmith.models.heads import HeadSpec
from tunesmith.models.policy import Policy

Losses = tuple[Tensor, dict[str, Tensor]]
"""A loss as a sum [], and further sums to report."""


@dataclass(frozen=True)
class Round:
    """What one step learns from, all of it made before the first update.

    groups: the micro-batches of each optimizer update; figures: how it was made (rewards, lengths …), as they are
    told; notes: sentences for a person.
    """

    groups: list[list[Batch]]
    figures: Mapping[str, float] = field(default_factory=dict[str, float])
    notes: tuple[str, ...] = ()


class Objective(Plugin):
    """A formula to be minimised. Stateless: all state lives in the model, the optimizer and the stream."""

    takes: ClassVar[type[Record]]
    """The kind of record it learns from."""
    needs_encoder: ClassVar[bool] = False
    """Whether it is for encoder-decoders only; other objectives take these too, where their rows have prompts."""
    needs_strangers: ClassVar[bool] = False
    """Whether an answer to another prompt stands beside each row's own answer (`data/strangers.py`)."""
    online: ClassVar[bool] = False
    """Whether it samples answers while it trains; what was sampled is then kept in checkpoints."""
    unit: ClassVar[str] = "tokens"
    """What is counted, for people."""

    @property
    def head(self) -> HeadSpec:
        """The output layer it needs: next tokens, scores, labels of tokens, or hidden states alone."""
        return HeadSpec()

    def rules(self, train: TrainSpec) -> Rules:
        """How its records become token rows."""
        return Rules(self.takes, train.max_tokens or MAX_TOKENS, train.over_long, train.learn)

    def resolved(self, base: HeadSpec, counts: Callable[[], Mapping[str, int]]) -> tuple[Objective, tuple[str, ...]]:
        """The objective with what it leaves open written out, and sentences for a person.

        base: the head that the model has; counts: reads the training rows and tells how often each label occurs.

        Raises:
            Problem: what is left open cannot be found.
        """
        return self, ()

    def check_rows(self, rows: TokenStore) -> None:
        """Refuse training rows that cannot teach it.

        Raises:
            Problem: with what the rows have instead.
        """

    def equip(self, policy: Policy) -> nn.Module | None:
        """A module that learns beside the model and is no part of the result, such as a value head; None for none.

        It is `policy.beside` from then on, and checkpoints hold it.
        """
        return None

    def round(self, policy: Policy, batches: Sequence[Batch], seed: int) -> Round:
        """What a step learns from, given this rank's micro-batches of it; every draw follows from the seed.

        Statistics of the whole step belong here: they go into the batches, so that the loss stays a sum over them.
        """
        return Round([[self.prepare(policy, batch) for batch in batches]])

    def prepare(self, policy: Policy, batch: Batch) -> Batch:
        """Add what the loss needs and no gradient should reach, such as reference log-probabilities."""
        return batch

    @property
    def scores_reference(self) -> Literal["never", "live", "precomputed"]:
        """Whether, and when, the model without the method has to score the rows."""
        return getattr(self, "reference", "never")

    @property
    def other_model(self) -> str | None:
        """Another model that it is held to or learns from, by folder or id; it is `policy.reference`."""
        return getattr(self, "reference_model", None)

    @property
    def sampled(self) -> int:
        """Tokens that are drawn for each row in a step, at most."""
        return 0

    @property
    def passes(self) -> int:
        """How often a step learns from its rows."""
        return 1

    def finish(self, policy: Policy, folder: Path) -> None:
        """Write beside the saved model and tokenizer what else those need who use it; nothing by default."""

    @abstractmethod
    def count(self, batch: Batch) -> float:
        """What the sum of `loss` is divided by, summed over the micro-batches of a step: tokens, pairs …"""

    @abstractmethod
    def loss(self, policy: Policy, batch: Batch) -> Losses:
        """The loss as a SUM over what `count` counts [], and further sums to report, divided by the same count."""

    def measure(
        self, policy: Policy, batches: Sequence[Batch], loss: Callable[[Batch], Losses]
    ) -> tuple[dict[str, float], float]:
        """Sums over validation batches, `loss` among them (lower is better), and their count.

        loss: that of a batch with what the method adds to it. Called without gradients and dropout.
        """
        told: list[Mapping[str, Tensor]] = []
        count = 0.0
        for batch in (batch for group in self.round(policy, batches, seed=0).groups for batch in group):
            total, figures = loss(batch)
            count += self.count(batch)
            told.append({"loss": total, **figures})
        return added_up(told), count

    def signs(self, steps: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
        """What the figures of a run's steps say that a person should know, as sentences; told when it ends."""
        return ()


def added_up(told: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Sums [] of the same names, added up in float64.

    They are read at once, after the last batch: to read a number, a GPU has to end all that it was given before.
    """
    named = [(name, value.detach().reshape(())) for figures in told for name, value in figures.items()]
    if not named:
        return {}
    kind = torch.float64 if any(value.dtype == torch.float64 for _, value in named) else torch.float32
    place = named[0][1].device
    read: list[float] = torch.stack([value.to(place, kind) for _, value in named]).tolist()
    sums: dict[str, float] = {}
    for (name, _), value in zip(named, read, strict=True):
        sums[name] = sums.get(name, 0.0) + value
    return sums


def next_token_loss(policy: Policy, batch: Batch) -> Tensor:
    """The weighted sum of -log p over the targets of a batch []."""
    return -policy.total(batch)
