"""Text as it is drawn: transformers pushes tokens from a thread of its own, the reader pulls pieces.

    thread: generate ── put(token) ─▶ queue ─▶ decoder (whole characters) ─▶ holder (stop texts) ─▶ pieces

A reader that closes the stream, or is interrupted, makes the thread stop at its next token and waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

Push = Callable[[BaseStreamer, StoppingCriteria], object]


class _Closed(StoppingCriteria):
    """Ends every row as soon as nobody reads any more."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), self.event.is_set(), dtype=torch.bool, device=input_ids.device)


class _Pipe(BaseStreamer):
    """Puts drawn tokens into a queue; the first thing that transformers pushes is the prompt, and is left out."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[list[int] | BaseException | None] = SimpleQueue()
        self.prompt_seen = False

    def put(self, value: Tensor) -> None:
        if self.prompt_seen:
            self.queue.put(value.flatten().tolist())
        self.prompt_seen = True

    def end(self) -> None:
        """The end is told by the thread itself, which also knows of failures."""


def pull(push: Push) -> Generator[int, None, None]:
    """The tokens that `push` draws, one by one; a failure in it is raised here."""
    pipe, closed = _Pipe(), _Closed()

    def work() -> None:
        try:
            push(pipe, closed)
        except BaseException as error:
            pipe.queue.put(error)
        else:
            pipe.queue.put(None)

    thread = threading.Thread(target=work, name="tunesmith-stream", daemon=True)
    thread.start()
    try:
        while (item := pipe.queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield from item
    finally:
        closed.event.set()
        thread.join()
