"""The machine: what it is, and the rate of matrix products that no program on it can exceed."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Product = tuple[int, int, int]
"""(rows, inner, columns) of one matrix product."""


def describe() -> dict[str, Any]:
    """Processor, cores, memory in GB, system and how busy it is."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
    }


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def product_rate(products: Iterable[Product], dtype: str = "float32", tries: int = 5) -> float:
    """GFLOP/s of a list of products on one thread, each at the fastest of some tries, in CPU time."""
    import torch

    torch.set_num_threads(1)
    shapes = list(products)
    seconds = sum(_fastest(shape, getattr(torch, dtype), tries) for shape in shapes)
    return sum(2 * rows * inner * columns for rows, inner, columns in shapes) / seconds / 1e9


def _fastest(shape: Product, dtype: Any, tries: int) -> float:
    """CPU seconds of a product with a weight as layers hold it [columns, inner], after one that is not counted."""
    import torch

    rows, inner, columns = shape
    left, right = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
    out = torch.empty(rows, columns, dtype=dtype)
    torch.mm(left, right.t(), out=out)
    return min(_timed(left, right, out) for _ in range(tries))


def _timed(left: Any, right: Any, out: Any) -> float:
    import torch

    start = time.process_time()
    torch.mm(left, right.t(), out=out)
    return time.process_time() - start


def limit(settings: dict[str, Any]) -> dict[str, Any]:
    """The rate as a side of its own; settings: `products`, perhaps `dtype`."""
    products: Sequence[Any] = settings["products"]
    return {"gflops": product_rate([(p[0], p[1], p[2]) for p in products], settings.get("dtype", "float32"))}
