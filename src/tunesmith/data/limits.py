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
from types import FrameType

_PAGES = "/proc/self/statm"
_held: list[bool] = []
"""Whether the handler of the timer is in place for a while."""


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
def many() -> Generator[None, None, None]:
    """Within this, `limited` costs less: the handler of its timer stays in place from one use to the next."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer") or _held:
        yield
        return
    handler = signal.signal(signal.SIGALRM, _time_is_over)
    _held.append(True)
    try:
        yield
    finally:
        _held.clear()
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)


@contextmanager
def _timer(seconds: float) -> Generator[None, None, None]:
    if signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return
    with many():
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _time_is_over(number: int, frame: FrameType | None) -> None:
    raise TimeoutError("the time of a template is over")


def _pages() -> int:
    """How many pages of addresses the process has."""
    file = os.open(_PAGES, os.O_RDONLY)
    try:
        return int(os.read(file, 128).split(b" ", 1)[0])
    finally:
        os.close(file)


@contextmanager
def _ceiling(megabytes: int) -> Generator[None, None, None]:
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    held = _pages() * os.sysconf("SC_PAGESIZE")
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
