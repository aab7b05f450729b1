"""Texts that end an answer: found while tokens are drawn, cut from what is given back, held back in a stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria

SLACK = 8
"""Tokens looked at beyond a stop text's bytes, for those that stand for no byte of their own."""


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of the stop texts, and whether there was one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


class StopTexts(StoppingCriteria):
    """Ends each row whose newest tokens contain a stop text."""

    def __init__(self, stops: Sequence[str], decode: Callable[[Sequence[int]], str], prompt_length: int) -> None:
        self.stops = tuple(stops)
        self.decode = decode
        self.prompt_length = prompt_length
        self.window = max(len(stop.encode()) for stop in stops) + SLACK

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """[B] which rows are done, given all tokens [B, L] so far."""
        newest = input_ids[:, self.prompt_length :][:, -self.window :].tolist()
        done = [cut(self.decode(row), self.stops)[1] for row in newest]
        return torch.tensor(done, device=input_ids.device)


class Holder:
    """Passes text on as it comes, but keeps back an end that may be the beginning of a stop text."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """What may be shown now that `piece` has come; nothing more after a stop text."""
        if self.stopped:
            return ""
        text, self.stopped = cut(self.held + piece, self.stops)
        keep = 0 if self.stopped else self._doubtful(text)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was kept back, at the end."""
        held, self.held = self.held, ""
        return held

    def _doubtful(self, text: str) -> int:
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[len(text) - size :]) for stop in self.stops):
                return size
        return 0
