"""AdamW whose averages take 8 bits a number, through bitsandbytes (Dettmers et al., arXiv:2110.02861).

Each block of 256 numbers is kept as its largest size and one of 256 unevenly spaced steps for each.
"""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from tunesmith.optimizers import Groups, Shapes
from tunesmith.optimizers._adam import moment_bytes, need_bitsandbytes
from tunesmith.optimizers._eight_bit import adamw
from tunesmith.optimizers._options import AdamOptions, Positive


class AdamW8bit(AdamOptions):
    """AdamW with a quarter of its state, through bitsandbytes; weights of fewer than 4,096 numbers keep all of theirs.

    On a CPU an update takes some thirty times as long as AdamW's; that is little beside the gradients of large batches.
    """

    lr: Positive = 2e-4
    """The highest learning rate, after warm-up. LoRA likes 1e-4 to 5e-4, full fine-tuning 1e-5 to 5e-5."""

    def build(self, groups: Groups, seed: int = 0) -> Optimizer:
        return adamw(groups, self, bits=8)

    def state_bytes(self, shapes: Shapes) -> int:
        return sum(moment_bytes(shape.numel(), "8bit") for shape in shapes.values())

    def check(self, device: torch.device, dtype: torch.dtype) -> None:
        need_bitsandbytes()
