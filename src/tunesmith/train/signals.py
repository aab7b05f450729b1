"""SIGTERM and SIGINT as a wish: finish the micro-batch, save, leave; a second one leaves at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Wish:
    """Whether someone asked the run to stop."""

    def __init__(self) -> None:
        self.name = ""

    def __bool__(self) -> bool:
        return bool(self.name)


@contextmanager
def wish_to_stop() -> Iterator[Wish]:
    """A wish that signals fulfil while the context lasts; outside the main thread it stays unfulfilled."""
    wish = Wish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return

    def hear(number: int, frame: FrameType | None) -> None:
        if wish:
            raise KeyboardInterrupt
        wish.name = signal.Signals(number).name

    before = {number: signal.signal(number, hear) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
