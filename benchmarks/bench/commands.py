"""A side that is a whole command: its cost includes its start.

It is started from a small process, since what a process holds when it starts another counts as that one's peak memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any


def run(settings: dict[str, Any]) -> dict[str, float]:
    """Run `python ARGUMENTS…` in the side's environment; settings: `arguments`.

    Raises:
        RuntimeError: it failed.
    """
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, settings["arguments"])])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{settings['arguments']} ended with {process.returncode}")
    return {
        "cpu": usage.ru_utime + usage.ru_stime,
        "wall": time.perf_counter() - began,
        "memory": usage.ru_maxrss * 1024 / 1e6,
    }
