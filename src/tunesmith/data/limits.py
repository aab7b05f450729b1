"""Limits of the system around a piece of work: a timer and a ceiling on memory.

Both belong to the process, so they are set only from its main thread and only where the system has them; the caller
needs a first line of defence of its own.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_PAGES = Path("/proc/self/statm")


@contextmanager
def limited(seconds: float, megabytes: int) -> Generator[None, None, None]:
    """Run the body within so many seconds and with so many more megabytes than the process holds now.

    Raises:
        TimeoutError: the time is over.
        MemoryError: the memory is used up.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    with _timer(seconds), _ceiling(megabytes):
        yield


@contextmanager
def _timer(seconds: float) -> Generator[None, None, None]:
    before = signal.getitimer(signal.ITIMER_REAL)[0]
    if before:
        yield
        return
    handler = signal.signal(signal.SIGALRM, _time_is_over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)


def _time_is_over(number: int, frame: FrameType | None) -> None:
    raise TimeoutError("the time of a template is over")


@contextmanager
def _ceiling(megabytes: int) -> Generator[None, None, None]:
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    held = int(_PAGES.read_bytes().split(b" ", 1)[0]) * os.sysconf("SC_PAGESIZE")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = held + (megabytes << 20)
    if soft != resource.RLIM_INFINITY and soft <= wanted:
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
