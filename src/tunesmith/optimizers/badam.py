"""BAdam: Adam on one layer at a time, the others stand still (Luo et al., arXiv:2404.02827).

    for each block b of a round:   forget Adam's averages;  `every` steps of Adam on the weights of b alone

Only the block that learns has gradients and averages, so both are those of one layer. A round visits every block once.
"""

from __future__ import annotations

from typing import ClassVar, Literal, cast

from torch.optim import Optimizer

from tunesmith.optimizers import Groups, Shapes
from tunesmith.optimizers._options import AdamOptions, Count, Positive
from tunesmith.optimizers._turns import ENDS, Turns, check_blocks, drawn, sizes


class BAdam(AdamOptions):
    """Adam on one layer at a time: all layers learn in the end, with gradients and state of a single one."""

    of_base: ClassVar[bool] = True

    lr: Positive = 2e-5
    """The highest learning rate, after warm-up; what AdamW likes for full fine-tuning."""
    every: Count = 100
    """Steps that a layer learns before the next one does."""
    order: Literal["random", "ascending", "descending"] = "random"
    """In which order a round visits the layers; a random one follows from train.seed and the round."""
    ends: Literal["frozen", "learn"] = "frozen"
    """Whether embeddings, head and last norm stay as they are, or have a turn as one further block."""

    def build(self, groups: Groups, seed: int = 0) -> Optimizer:
        optimizer = Turns(groups, self, seed)
        check_blocks(self.name(), optimizer, least=2)
        return optimizer

    def state_bytes(self, shapes: Shapes) -> int:
        return 8 * self._largest(shapes)

    def gradient_bytes(self, shapes: Shapes) -> int:
        return 4 * self._largest(shapes)

    def before_step(self, optimizer: Optimizer, step: int) -> None:
        turns = cast(Turns, optimizer)
        turns.activate([self.block(turns, step)], drop=True)

    def heaviest_step(self, optimizer: Optimizer) -> None:
        turns = cast(Turns, optimizer)
        turns.activate(turns.layers[:1], drop=True)

    def block(self, turns: Turns, step: int) -> str:
        """The block that learns in a step."""
        blocks = turns.layers + ([ENDS] if self.ends == "learn" and ENDS in turns.blocks else [])
        round_, place = divmod(step // self.every, len(blocks))
        if self.order == "random":
            blocks = drawn(blocks, len(blocks), turns.seed, round_)
        return blocks[place if self.order != "descending" else -1 - place]

    def _largest(self, shapes: Shapes) -> int:
        return max(size for block, size in sizes(shapes).items() if block != ENDS or self.ends == "learn")
