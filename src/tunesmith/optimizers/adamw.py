"""AdamW: Adam with weight decay apart from the gradient (Loshchilov & Hutter, arXiv:1711.05101)."""

from __future__ import annotations

from torch.optim import AdamW as TorchAdamW
from torch.optim import Optimizer

from tunesmith.optimizers import Groups, Shapes
from tunesmith.optimizers._groups import decayed, fusible
from tunesmith.optimizers._options import AdamOptions, Positive


class AdamW(AdamOptions):
    """Adam with decoupled weight decay: the usual choice; two numbers of state for each weight that learns."""

    lr: Positive = 2e-4
    """The highest learning rate, after warm-up. LoRA likes 1e-4 to 5e-4, full fine-tuning 1e-5 to 5e-5."""

    def build(self, groups: Groups, seed: int = 0) -> Optimizer:
        parts = decayed(groups, self.weight_decay)
        return TorchAdamW(parts, betas=self.betas, eps=self.eps, fused=fusible(parts))

    def state_bytes(self, shapes: Shapes) -> int:
        return 8 * sum(shape.numel() for shape in shapes.values())
