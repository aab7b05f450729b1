"""The process of a side: calls one function and writes the figures that it gives back.

    python -m bench.work MODULE:FUNCTION SETTINGS.json RESULT.json

It imports nothing but the standard library, since it runs in the environments of other programs too. What the
function does before and after its timed part costs nothing: it takes the time itself, with a `Clock`.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

TOLD = (
    *("torch", "transformers", "peft", "accelerate", "trl", "llamafactory"),
    *("vllm", "liger_kernel", "unsloth", "mergekit"),
)
"""Packages whose versions are told, where they are installed."""


class Clock:
    """CPU seconds and wall seconds between `start` and `stop`, added up.

    CPU: user and system, of all threads and of the processes that were started here and have ended. Wall: with what a
    GPU was given to do before.
    """

    def __init__(self) -> None:
        self.cpu = 0.0
        self.wall = 0.0
        self._from: tuple[float, float] | None = None

    def start(self) -> None:
        """Begin, or begin again."""
        wait_for_gpu()
        self._from = (cpu_seconds(), time.perf_counter())

    def stop(self) -> None:
        """Add what passed since `start`."""
        if self._from is None:
            raise RuntimeError("the clock was not started")
        wait_for_gpu()
        cpu, wall = self._from
        self.cpu, self.wall = self.cpu + cpu_seconds() - cpu, self.wall + time.perf_counter() - wall
        self._from = None

    def __enter__(self) -> Clock:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def figures(self) -> dict[str, float]:
        return {"cpu": self.cpu, "wall": self.wall}


def cpu_seconds() -> float:
    """What this process has used since it began, and the processes that it started and that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def wait_for_gpu() -> None:
    """Until a GPU that this process uses has done what it was given."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def gpu_mb() -> dict[str, float]:
    """The peak of what this process held on a GPU, in MB of a million bytes; nothing where it used none."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    return {"gpu_memory": torch.cuda.max_memory_allocated() / 1e6}


def peak_mb() -> float:
    """The peak of this process's resident memory, in MB of a million bytes.

    From /proc, since what getrusage tells counts what a process held before it became this program.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("the system does not tell the peak of memory")


def versions() -> dict[str, str]:
    """The versions of the packages that matter, of those that are installed here."""
    found = {name: _version(name) for name in TOLD}
    return {name: version for name, version in found.items() if version}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def main() -> None:
    """Run a function and write its result."""
    named, settings, result = sys.argv[1:]
    module, _, function = named.partition(":")
    work = getattr(importlib.import_module(module), function)
    figures: dict[str, Any] = work(json.loads(Path(settings).read_text("utf-8")))
    told = {"memory": peak_mb(), **gpu_mb(), **figures}
    Path(result).write_text(json.dumps({"figures": told, "versions": versions()}), "utf-8")


if __name__ == "__main__":
    main()
