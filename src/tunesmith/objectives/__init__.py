"""The contract of objectives: what to get better at, as a sum and a count. One file an objective."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

from torch import Tensor

from tunesmith.core.plugins import Plugin
from tunesmith.core.records import Record
from tunesmith.models.forest import Batch
from tunesmith.models.policy import Policy


class Objective(Plugin):
    """A formula to be minimised. Stateless: all state lives in the model, the optimizer and the stream."""

    takes: ClassVar[type[Record]]
    """The kind of record it learns from."""
    head: ClassVar[Literal["lm", "score"]] = "lm"
    """The output layer it needs: next tokens, or one number a row."""
    needs_encoder: ClassVar[bool] = False
    """Whether it is for encoder-decoders only; other objectives take these too, where their rows have prompts."""
    unit: ClassVar[str] = "tokens"
    """What is counted, for people."""

    def updates(self, policy: Policy, steps: Iterator[Sequence[Batch]]) -> Iterator[list[Batch]]:
        """The micro-batches of each optimizer step; objectives that sample yield several groups a fresh step."""
        for batches in steps:
            yield [self.prepare(policy, batch) for batch in batches]

    def prepare(self, policy: Policy, batch: Batch) -> Batch:
        """Add what the loss needs and no gradient should reach, such as reference log-probabilities."""
        return batch

    @property
    def scores_reference(self) -> Literal["never", "live", "precomputed"]:
        """Whether, and when, the model without the method has to score the rows."""
        return getattr(self, "reference", "never")

    @abstractmethod
    def count(self, batch: Batch) -> float:
        """What the sum of `loss` is divided by, summed over the micro-batches of a step: tokens, pairs …"""

    @abstractmethod
    def loss(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss as a SUM over what `count` counts [], and further sums to report, divided by the same count."""


def next_token_loss(policy: Policy, batch: Batch) -> Tensor:
    """The weighted sum of -log p over the targets of a batch []."""
    return -(policy.logprobs(batch) * batch.targets.weight).sum()
