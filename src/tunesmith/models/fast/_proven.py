"""A kernel that is used only for what it has been seen to compute rightly, on this machine, in this process.

When something is asked of it for the first time (a number type, heads of some number and width, a cap, a window), a
small forest of random states goes through it: its values and gradients must be those that segment by segment gives in
float32. What does not pass is left to others; `reasons` says why, and a warning tells it once.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from tunesmith.models.attention import Ask, Kernel, by_segment
from tunesmith.models.device import product_type
from tunesmith.models.forest import Layout, Segment

NEAR = {torch.float64: 1e-3, torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""Largest relative distance from float32's vectors that rounding explains."""
SEGMENTS: tuple[tuple[int, int | None], ...] = ((150, None), (70, 0), (140, 0), (33, None), (1, 3))
"""Tokens and parent of each; a kernel's blocks are 128 long."""
WINDOW = 100

Asked = tuple[torch.dtype, torch.Size, torch.Size, float | None, bool, bool]


class Proven:
    """A kernel with what it was tried on."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.reasons: dict[Asked, str] = {}
        """Why it is not used, by what was asked; empty where it is."""

    def takes(self, query: Tensor, value: Tensor, ask: Ask) -> bool:
        if not self.kernel.takes(query, value, ask):
            return False
        window, above = ask.window is not None, ask.before is not None
        shapes = (query[0, :, :1].shape, value[0, :, :1].shape)
        asked = (product_type(query), *shapes, ask.softcap, window, above)
        if asked not in self.reasons:
            self.reasons[asked] = reason = self._fault(query, value, ask)
            if reason:
                warnings.warn(f"attention: {reason}, so slower code takes its place", stacklevel=2)
        return not self.reasons[asked]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout, ask: Ask) -> Tensor:
        return self.kernel(query, key, value, layout, ask)

    def _fault(self, query: Tensor, value: Tensor, ask: Ask) -> str:
        kind, name = product_type(query), type(self.kernel).__name__
        try:
            with _apart(), torch.enable_grad(), torch.autocast(query.device.type, enabled=False):
                far = _distance(self.kernel, query, value, ask, kind)
        except Exception as error:  # whatever a kernel raises means that it is not for this machine
            return f"{name} fails ({type(error).__name__}: {error})".splitlines()[0]
        return "" if far <= NEAR[kind] else f"{name} differs by {far:.2g} in {str(kind)[6:]}"


def _apart() -> AbstractContextManager[object]:
    """A context whose backward passes are its own, also within layers whose activations are recomputed."""
    return torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _distance(kernel: Kernel, query: Tensor, value: Tensor, ask: Ask, kind: torch.dtype) -> float:
    """The largest relative distance of values and gradients on the small forest."""
    draw = torch.Generator().manual_seed(0)
    past = 0 if ask.before is None else 5
    layout = _forest(past, query.device)

    def states(like: Tensor, length: int, width: int) -> Tensor:
        made = torch.randn(1, like.shape[1], length, width, generator=draw)
        return made.to(query.device, kind).requires_grad_()

    sizes = ((query, query.shape[3]), (value, query.shape[3]), (value, value.shape[3]))
    leaves = [states(like, len(layout.positions), width) for like, width in sizes]
    before = (states(value, past, query.shape[3]), states(value, past, value.shape[3])) if past else None
    ask = replace(ask, window=None if ask.window is None else WINDOW, before=before)
    ours = _grown(kernel(leaves[0], leaves[1], leaves[2], layout, ask), leaves)
    exact = [leaf.detach().float().requires_grad_() for leaf in leaves]
    ask = replace(ask, before=None if before is None else (before[0].detach().float(), before[1].detach().float()))
    theirs = _grown(by_segment(exact[0], exact[1], exact[2], layout, ask), exact)
    return max(_far(found.float(), right) for found, right in zip(ours, theirs, strict=True))


def _far(found: Tensor, right: Tensor) -> float:
    """The largest distance of vectors [..., D], relative to their length, or to the mean one if that is larger."""
    length = right.norm(dim=-1)
    return float(((found - right).norm(dim=-1) / length.clamp_min(length.mean())).max())


def _grown(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """A result and its gradients, where each number of it counts otherwise than its neighbours."""
    weight = torch.linspace(-1, 1, out.numel(), device=out.device).cos().view(out.shape)
    return [out.detach(), *torch.autograd.grad((out.float() * weight).sum(), leaves)]


def _forest(past: int, device: torch.device) -> Layout:
    stops = list(accumulate(size for size, _ in SEGMENTS))
    segments = [Segment(stop - size, stop, parent) for stop, (size, parent) in zip(stops, SEGMENTS, strict=True)]
    first = [past if parent is None else past + SEGMENTS[parent][0] for _, parent in SEGMENTS]
    positions = [torch.arange(start, start + size) for start, (size, _) in zip(first, SEGMENTS, strict=True)]
    above = ((torch.zeros(1, 1, past, 1), torch.zeros(1, 1, past, 1)),) if past else ()
    return Layout(tuple(segments), torch.cat(positions).to(device), above)
