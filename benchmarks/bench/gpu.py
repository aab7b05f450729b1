"""A GPU, or what stands in for it in a dry run: what it is, and the rate of matrix products it reaches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

TRIES = 20


def limit(settings: dict[str, Any]) -> dict[str, Any]:
    """GFLOP/s of a list of products; settings: `products`, `device`, `dtype`."""
    import torch

    shapes: Sequence[Sequence[int]] = settings["products"]
    device, dtype = settings["device"], getattr(torch, settings["dtype"])
    seconds = sum(_fastest(shape, device, dtype) for shape in shapes)
    return {"gflops": sum(2 * rows * inner * columns for rows, inner, columns in shapes) / seconds / 1e9}


def _fastest(shape: Sequence[int], device: str, dtype: Any) -> float:
    """Seconds of a product with a weight as layers hold it, the best of a few runs after one that is not counted."""
    import torch

    rows, inner, columns = shape
    left = torch.randn(rows, inner, device=device, dtype=dtype)
    right = torch.randn(columns, inner, device=device, dtype=dtype)
    return min(_timed(left, right) for _ in range(TRIES + 1))


def _timed(left: Any, right: Any) -> float:
    import torch

    from bench.work import wait_for_gpu

    wait_for_gpu()
    start = time.perf_counter()
    torch.mm(left, right.t())
    wait_for_gpu()
    return time.perf_counter() - start


def name_of(device: str) -> str:
    """The device's name."""
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else device


def is_there() -> bool:
    """Whether this machine has a GPU that torch can use."""
    import torch

    return torch.cuda.is_available()
