"""LISA: AdamW on a few layers drawn at random, with embeddings and head always learning (Pan et al., arXiv:2403.17919).

every `every` steps:   freeze all layers, draw `layers` of them, and let those learn
"""

from __future__ import annotations

from typing import ClassVar, Literal, cast

from torch.optim import Optimizer

from tunesmith.optimizers import Groups, Shapes
from tunesmith.optimizers._options import AdamOptions, Count, Positive
from tunesmith.optimizers._turns import ENDS, Turns, check_blocks, drawn, sizes


class Lisa(AdamOptions):
    """AdamW on a few random layers at a time; embeddings, head and last norm learn in every step."""

    of_base: ClassVar[bool] = True

    lr: Positive = 2e-5
    """The highest learning rate, after warm-up; what AdamW likes for full fine-tuning."""
    layers: Count = 2
    """Layers that learn at a time."""
    every: Count = 20
    """Steps after which other layers are drawn; which ones follows from train.seed and the step."""
    resting: Literal["kept", "dropped"] = "kept"
    """What becomes of AdamW's averages of a layer that rests: kept until its next turn, or dropped, which saves memory
    and lets each turn begin anew."""

    def build(self, groups: Groups, seed: int = 0) -> Optimizer:
        optimizer = Turns(groups, self, seed)
        check_blocks(self.name(), optimizer, least=self.layers + 1)
        return optimizer

    def state_bytes(self, shapes: Shapes) -> int:
        return 8 * (sum(sizes(shapes).values()) if self.resting == "kept" else self._active(shapes))

    def gradient_bytes(self, shapes: Shapes) -> int:
        return 4 * self._active(shapes)

    def before_step(self, optimizer: Optimizer, step: int) -> None:
        turns = cast(Turns, optimizer)
        chosen = drawn(turns.layers, self.layers, turns.seed, step // self.every)
        turns.activate([ENDS, *chosen], drop=self.resting == "dropped")

    def heaviest_step(self, optimizer: Optimizer) -> None:
        turns = cast(Turns, optimizer)
        turns.activate([ENDS, *turns.layers[: self.layers]], drop=True)

    def _active(self, shapes: Shapes) -> int:
        """Numbers in the ends and the largest layers."""
        found = sizes(shapes)
        ends = found.pop(ENDS, 0)
        return ends + sum(sorted(found.values())[-self.layers :])
