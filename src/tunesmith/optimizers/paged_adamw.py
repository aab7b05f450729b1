"""AdamW whose state moves between GPU and main memory by itself, through bitsandbytes (QLoRA, arXiv:2305.14314).

The state lies in CUDA's unified memory: pages that are not used make way for a long row's activations, and come back
for the update.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.optim import Optimizer

from tunesmith.core.problem import Problem
from tunesmith.optimizers import Groups, Shapes
from tunesmith.optimizers._adam import moment_bytes, need_bitsandbytes
from tunesmith.optimizers._eight_bit import adamw
from tunesmith.optimizers._options import AdamOptions, Positive


class PagedAdamW(AdamOptions):
    """AdamW whose state makes way into main memory when the GPU's is short; needs a CUDA GPU and bitsandbytes."""

    lr: Positive = 2e-4
    """The highest learning rate, after warm-up. LoRA likes 1e-4 to 5e-4, full fine-tuning 1e-5 to 5e-5."""
    bits: Literal[8, 32] = 32
    """Bits of each number of state."""

    def build(self, groups: Groups, seed: int = 0) -> Optimizer:
        return adamw(groups, self, bits=self.bits, paged=True)

    def state_bytes(self, shapes: Shapes) -> int:
        kept = "8bit" if self.bits == 8 else "float32"
        return sum(moment_bytes(shape.numel(), kept) for shape in shapes.values())

    def check(self, device: torch.device, dtype: torch.dtype) -> None:
        if device.type != "cuda":
            raise Problem(
                f"optimizer.{self.name()}",
                f"moves state between a CUDA GPU and main memory, and this run computes on {device.type}",
                "Use the optimizer adamw8bit or adamw",
            )
        need_bitsandbytes()
