"""Where and in which number type to compute, chosen by what the machine has or what is measured on it."""

from __future__ import annotations

import resource
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from tunesmith.core.problem import Problem

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Choice:
    """A device and a number type, with the reason of each for a person."""

    device: torch.device
    dtype: torch.dtype
    reasons: tuple[str, ...]


def choose(device: str, dtype: str) -> Choice:
    """The device and number type for `auto` or a name.

    Raises:
        Problem: the device asked for is not on this machine, or it cannot compute in the type asked for.
    """
    place, why_place = _device(device)
    kind, why_kind = _dtype(dtype, place)
    return Choice(place, kind, (f"device {place.type}: {why_place}", f"dtype {str(kind)[6:]}: {why_kind}"))


def autocasts(states: Tensor) -> bool:
    """Whether autocast is on where states are."""
    kind = states.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def product_type(states: Tensor) -> torch.dtype:
    """The number type of products with states: theirs, or autocast's where it is on."""
    return torch.get_autocast_dtype(states.device.type) if autocasts(states) else states.dtype


def untyped(states: Tensor) -> AbstractContextManager[object]:
    """Products of states in the types that are given, whatever autocast says."""
    kind = states.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def memory_bytes(device: torch.device) -> int:
    """Bytes that are free to use on a device now; a container's limit counts as the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = psutil.virtual_memory().available
    limit = _container_limit()
    return min(free, limit) if limit else free


def peak_bytes(device: torch.device) -> int:
    """The most bytes that this process has held on a device so far."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def bf16_speed() -> float:
    """How fast bf16 products are here, as a multiple of fp32's, on the CPU (some 30 ms)."""
    rates = []
    for kind in (torch.float32, torch.bfloat16):
        left, right = (torch.ones(384, 384, dtype=kind) for _ in range(2))
        torch.mm(left, right)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            torch.mm(left, right)
            times.append(time.perf_counter() - start)
        rates.append(1 / min(times))
    return rates[1] / rates[0]


def _device(wanted: str) -> tuple[torch.device, str]:
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted != "auto":
        if not found[wanted]:
            have = ", ".join(name for name, there in found.items() if there)
            raise Problem("model.device", f"{wanted} is not on this machine", f"This machine has: {have}")
        return torch.device(wanted), "as asked"
    best = next(name for name in ("cuda", "mps", "cpu") if found[name])
    why = {
        "cuda": "an NVIDIA GPU is here",
        "mps": "an Apple GPU is here",
        "cpu": f"no GPU is here; threads: {torch.get_num_threads()}",
    }
    return torch.device(best), why[best]


def _dtype(wanted: str, device: torch.device) -> tuple[torch.dtype, str]:
    if wanted != "auto":
        kind = DTYPES[wanted]
        if kind == torch.float16 and device.type == "cpu":
            raise Problem("model.dtype", "float16 does not train on a CPU (its gradients underflow)", "Use float32")
        if kind == torch.bfloat16 and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise Problem("model.dtype", "this GPU has no bfloat16", "Use float32")
        return kind, "as asked"
    if device.type == "cuda":
        good = torch.cuda.is_bf16_supported()
        return (torch.bfloat16, "this GPU computes it") if good else (torch.float32, "this GPU has no bfloat16")
    if device.type == "mps":
        return torch.float32, "the safe choice on Apple GPUs"
    speed = bf16_speed()
    if speed > 1.3:
        return torch.bfloat16, f"products run {speed:.1f} times as fast as in float32 here (measured)"
    return torch.float32, f"bfloat16 products run at {speed:.1f} times its speed here (measured)"


def _container_limit() -> int | None:
    """Bytes that a container's own limit leaves; None where there is no limit."""
    group = Path("/sys/fs/cgroup")
    limit = group / "memory.max"
    text = limit.read_text().strip() if limit.exists() else ""
    if not text.isdigit():
        return None
    return max(0, int(text) - int((group / "memory.current").read_text()))
