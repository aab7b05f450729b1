"""The ranks of a run: who they are, and sums over them. The only file that knows of more than one process.

A step's gradient is one sum over ranks, taken once after the last micro-batch, so it does not matter how its rows
were dealt. Processes are found through accelerate, as `torchrun` or `accelerate launch` start them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn

BUCKET_NUMBERS = 1 << 25
T = TypeVar("T")


class World:
    """All ranks of this run, seen from one of them."""

    def __init__(self, device: torch.device) -> None:
        self._state = PartialState(cpu=device.type == "cpu")
        self.rank = self._state.process_index
        self.size = self._state.num_processes

    @property
    def main(self) -> bool:
        """Whether this rank writes files and tells listeners."""
        return self.rank == 0

    def total(self, value: float) -> float:
        """The sum of a number over ranks."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self._state.device)
        dist.all_reduce(tensor)
        return float(tensor)

    def most(self, value: int) -> int:
        """The largest of the ranks' numbers."""
        return max(int(part) for part in self.gather(torch.tensor(value)))

    def totals(self, values: dict[str, float]) -> dict[str, float]:
        """The sums of several numbers over ranks; a rank without rows may lack some names."""
        if self.size == 1:
            return values
        gathered: list[dict[str, float]] = [{}] * self.size
        dist.all_gather_object(gathered, values)
        names = sorted({name for part in gathered for name in part})
        return {name: sum(part.get(name, 0.0) for part in gathered) for name in names}

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor, in the order of ranks, on this rank's device; their first axes may differ."""
        if self.size == 1:
            return [tensor]
        told: list[Tensor | None] = [None] * self.size
        dist.all_gather_object(told, tensor.detach().cpu())
        return [part.to(tensor.device) for part in cast("list[Tensor]", told)]

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank."""
        return self.total(float(flag)) > 0

    def sum_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """Add the gradients of all ranks up, in place; a weight that has none on this rank counts as zero.

        Weights that do not learn in this step, the same on all ranks, get none.
        """
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        for weight in weights:
            if not weight.requires_grad:
                continue
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            bucket.append(weight.grad)
            if sum(grad.numel() for grad in bucket) >= BUCKET_NUMBERS:
                _sum_bucket(bucket)
                bucket = []
        if bucket:
            _sum_bucket(bucket)

    def agree(self, decide: Callable[[], T]) -> T:
        """What the main rank decides, on every rank; the others wait for it."""
        if self.size == 1:
            return decide()
        told: list[T | None] = [decide() if self.main else None]
        dist.broadcast_object_list(told, src=0)
        return cast("T", told[0])

    def wait(self) -> None:
        """Go on when every rank has come here."""
        self._state.wait_for_everyone()


def _sum_bucket(grads: list[Tensor]) -> None:
    flat = torch.cat([grad.flatten().float() for grad in grads])
    dist.all_reduce(flat)
    start = 0
    for grad in grads:
        grad.copy_(flat[start : start + grad.numel()].view_as(grad))
        start += grad.numel()
