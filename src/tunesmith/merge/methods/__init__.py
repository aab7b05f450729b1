"""The contract of merge methods: how tensors of the same name become one. One file a method.

    every model's tensor ─▶ Block, Block …  ─ measure(all blocks) ─▶ what must be known of the whole tensor
                                 │                                        │
                                 └────────────── merge(block, known) ◀────┘ ─▶ Array, rounded once by the engine

A block is a few whole rows of one tensor (a tensor of one axis is one block), read from each model into float32, or
into float64 where the recipe says so; nothing larger is in memory. A method that needs norms or thresholds of the whole
tensor finds them in `measure`, which may go over the blocks as often as it likes; all others leave it alone.

The names of options are mergekit's. An option is resolved for each tensor before the method sees it (filters, gradients
over layers), so inside `measure` and `merge` it is plain. One of type `Each[...]` has a value a model, in the order
of `Block.tensors`; its default is a tuple of one, which all models get.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.plugins import Plugin

Array = NDArray[np.floating[Any]]

T = TypeVar("T")


class OneEach:
    """Marks an option that has a value a model."""


Each = Annotated[tuple[T, ...], OneEach()]
"""An option with a value a model: `weight: Each[float]`; with a default, `weight: Each[float] = (1.0,)`."""


@dataclass(frozen=True)
class Block:
    """The same rows of one tensor in every model, in float32 or better; a method may overwrite them.

    base: the base model's rows, None where the recipe has no base or the method takes it as one of the models;
    tensors: the other models' rows, in the recipe's order; number: of the block in its tensor, from 0; draw: a random
    generator for a model, which follows from the seed, the tensor's name, the model's and the block's number alone:
    threads and processes do not change it.
    """

    base: Array | None
    tensors: tuple[Array, ...]
    number: int
    draw: Callable[[int], np.random.Generator]


@dataclass(frozen=True)
class Whole:
    """A whole tensor, read block by block as often as one iterates over it.

    shape: of the merged tensor; blocks: how many there are; pick: reads every so manieth element of a block, flat,
    where that is cheaper than to read the block.
    """

    shape: tuple[int, ...]
    blocks: int
    read: Callable[[int], Block]
    pick: Callable[[int, int], Block] | None = None

    def __iter__(self) -> Iterator[Block]:
        """The blocks in their order."""
        return (self.read(number) for number in range(self.blocks))

    def every(self, step: int) -> Iterator[Block]:
        """Every step-th element of each block, from its first, flat."""
        return ((self.pick or self._thinned)(number, step) for number in range(self.blocks))

    def _thinned(self, number: int, step: int) -> Block:
        block = self.read(number)
        base = None if block.base is None else thinned(block.base, step)
        return Block(base, tuple(thinned(tensor, step) for tensor in block.tensors), number, block.draw)


def thinned(array: Array, step: int) -> Array:
    """Every step-th element, flat, in an array of its own."""
    return array.reshape(-1)[::step].copy()


class MergeMethod(Plugin):
    """How tensors of the same name become one."""

    base: ClassVar[Literal["none", "optional", "required"]] = "none"
    """Whether a base model is set apart from the others; with `none` a recipe's base is one of the models."""
    models: ClassVar[tuple[int, int | None]] = (1, None)
    """The fewest and the most models it takes, without a base that is set apart; None for no limit."""

    def measure(self, whole: Whole) -> Any:
        """What must be known of the whole tensor before its blocks are merged: norms, thresholds; None for nothing."""
        return None

    @abstractmethod
    def merge(self, block: Block, known: Any) -> Array:
        """The merged rows, of the block's shape; known: what `measure` found."""
