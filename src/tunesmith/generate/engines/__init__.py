"""The contract of engines: what answers. One file an engine.

    engine (options) ── open(model) ─▶ Answers ─┬─ answer(prompts, sampling)     ─▶ Answer, Answer …
                                                ├─ answers(prompts, sampling, n) ─▶ (Answer × n), (Answer × n) …
                                                └─ stream(prompt, sampling)      ─▶ text, piece by piece

A model that is in memory and learns is followed: `follow(model)` answers from the weights as they are at each call. Not
every engine can; one that only knows an address opens a model by name. What comes out is the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from torch import nn

from tunesmith.core.plugins import Plugin
from tunesmith.core.problem import Problem
from tunesmith.core.records import Chat, Text
from tunesmith.core.run import ModelSpec
from tunesmith.data.tokenizer import Codec
from tunesmith.generate.sampling import Sampling

Around = Callable[[], AbstractContextManager[object]]
Ask = Chat | Text
"""What can be answered: a chat, which goes through the template and gets its next turn, or a text to continue."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: its text, its tokens as they were drawn (the end token too), and why it ended.

    ended: `stop` at an end token or a stop text, `length` where `max_tokens` or the model's context was full.
    """

    text: str
    tokens: tuple[int, ...]
    ended: str


class Answers(ABC):
    """A model at work, ready to answer."""

    @abstractmethod
    def answer(self, asks: Sequence[Ask], sampling: Sampling) -> Iterator[Answer]:
        """One answer to each ask, in their order.

        Raises:
            Problem: an ask that leaves no room for an answer; nothing is answered then.
        """

    def answers(self, asks: Sequence[Ask], sampling: Sampling, n: int) -> Iterator[tuple[Answer, ...]]:
        """n answers to each ask, in their order, each with a draw of its own; without a temperature they are equal.

        They are those of `answer` for the asks with each of them n times in a row.

        Raises:
            Problem: as `answer`.
        """
        if n < 1:
            raise ValueError(f"n is {n}, and an ask has one answer at least")
        return in_groups(self.answer([ask for ask in asks for _ in range(n)], sampling), n)

    @abstractmethod
    def stream(self, ask: Ask, sampling: Sampling) -> Generator[str, None, None]:
        """The text of one answer, piece by piece, whole characters only; closing the generator stops the model.

        Raises:
            Problem: as `answer`.
        """


def in_groups(answers: Iterator[Answer], n: int) -> Iterator[tuple[Answer, ...]]:
    """Answers in groups of n, as they come."""
    while group := tuple(islice(answers, n)):
        yield group


class Engine(Plugin):
    """What answers."""

    follows: ClassVar[bool] = False
    """Whether it can answer from the weights of a model that learns."""

    @abstractmethod
    def open(self, model: ModelSpec) -> Answers:
        """Load, start or reach a model (an adapter or run folder is the base with its adapter on it).

        Raises:
            Problem: the model cannot be used by this engine.
        """

    def follow(self, model: nn.Module, codec: Codec, around: Around = nullcontext) -> Answers:
        """Answers of a model in memory, from the weights it has at each call.

        model: a transformers model or PEFT's wrapper of one; around: a context to compute in, where the engine
        computes with the model itself.

        Raises:
            Problem: the engine cannot take these weights, or those of no model that learns.
        """
        what = "holds weights of its own, which do not learn with the run"
        raise Problem(f"engine {self.name()}", what, "Use local, or vllm where that is installed")
