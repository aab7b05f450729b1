"""Answers of a server that speaks OpenAI's API, such as vLLM's.

    chat ─▶ POST /chat/completions    the server's own template renders it
    text ─▶ POST /completions         the text goes on

A server gives texts and no tokens, so `Answer.tokens` is empty, and nothing can learn from such answers.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from pydantic import Field

from tunesmith.core.problem import Problem
from tunesmith.core.records import Text
from tunesmith.core.run import ModelSpec
from tunesmith.generate.draws import seed_of
from tunesmith.generate.engines import Answer, Answers, Ask, Engine
from tunesmith.generate.engines._http import Server
from tunesmith.generate.sampling import Sampling


class Remote(Engine):
    """A server that speaks OpenAI's API."""

    address: str = "http://127.0.0.1:8000/v1"
    """Where the server is, with the part of the path before `chat/completions`."""
    model: str | None = None
    """What the server calls the model; by default the path of the model that is asked for."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; a key is sent in encrypted requests or to this machine only."""
    parallel: Annotated[int, Field(gt=0, le=1024)] = 8
    """Requests under way at once."""
    timeout_seconds: Annotated[float, Field(gt=0, le=86400)] = 300.0
    """How long one request may take."""
    retries: Annotated[int, Field(ge=0, le=100)] = 3
    """How often a request is tried again that was not answered, or answered with a fault that may pass."""
    pause_seconds: Annotated[float, Field(ge=0, le=3600)] = 0.5
    """How long is waited before the first of these; each further wait is twice as long."""

    def open(self, model: ModelSpec) -> RemoteAnswers:
        key = os.environ.get(self.key_variable, "")
        server = Server(self.address, key, self.timeout_seconds, self.retries, self.pause_seconds)
        return RemoteAnswers(server, self.model or model.path, self.parallel)


class RemoteAnswers(Answers):
    """A server at work. name: what it calls the model."""

    def __init__(self, server: Server, name: str, parallel: int) -> None:
        self.server = server
        self.name = name
        self.parallel = parallel

    def answer(self, asks: Sequence[Ask], sampling: Sampling) -> Iterator[Answer]:
        return (answer for (answer,) in self.answers(asks, sampling, 1))

    def answers(self, asks: Sequence[Ask], sampling: Sampling, n: int) -> Iterator[tuple[Answer, ...]]:
        if n < 1:
            raise ValueError(f"n is {n}, and an ask has one answer at least")
        return self._gathered(list(asks), sampling, n)

    def stream(self, ask: Ask, sampling: Sampling) -> Generator[str, None, None]:
        path, body = self._request(0, ask, sampling, 1)
        for event in self.server.events(path, body):
            for choice in event.get("choices") or ():
                piece = choice.get("text") if path == "completions" else (choice.get("delta") or {}).get("content")
                if piece:
                    yield piece

    def _gathered(self, asks: list[Ask], sampling: Sampling, n: int) -> Iterator[tuple[Answer, ...]]:
        pool = ThreadPoolExecutor(self.parallel, thread_name_prefix="tunesmith-remote")
        try:
            yield from pool.map(lambda index: self._one(index, asks[index], sampling, n), range(len(asks)))
        finally:
            pool.shutdown(cancel_futures=True)

    def _one(self, index: int, ask: Ask, sampling: Sampling, n: int) -> tuple[Answer, ...]:
        """The answers to one ask."""
        path, body = self._request(index, ask, sampling, n)
        choices = self.server.ask(path, body).get("choices")
        if not isinstance(choices, list) or len(choices) != body["n"]:
            count = len(choices) if isinstance(choices, list) else "no"
            raise Problem(f"prompt {index + 1}", f"was to have {body['n']} answers, and the server gave {count}")
        found = tuple(_answer(choice, index) for choice in choices)
        return found * n if len(found) < n else found

    def _request(self, index: int, ask: Ask, sampling: Sampling, n: int) -> tuple[str, dict[str, Any]]:
        """The path and the body of a request; without a temperature one answer is asked for, since all are equal."""
        body: dict[str, Any] = {
            "model": self.name,
            "n": n if sampling.temperature else 1,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed_of(sampling.seed, index * n),
        }
        # not in OpenAI's API: a server that does not know them says so, and is not asked where they change nothing
        body |= {"top_k": sampling.top_k} if sampling.top_k else {}
        body |= {"repetition_penalty": sampling.repetition_penalty} if sampling.repetition_penalty != 1 else {}
        body |= {"stop": list(sampling.stop)} if sampling.stop else {}
        if isinstance(ask, Text):
            return "completions", {**body, "prompt": ask.text}
        body |= {"tools": [dict(tool) for tool in ask.tools]} if ask.tools else {}
        return "chat/completions", {**body, "messages": [message.plain() for message in ask.messages]}


def _answer(choice: Any, index: int) -> Answer:
    """Raises: Problem: the choice holds no text."""
    held = choice if isinstance(choice, dict) else {}
    text = held.get("text", (held.get("message") or {}).get("content"))
    if not isinstance(text, str):
        called = bool((held.get("message") or {}).get("tool_calls"))
        what = "was answered with a call of a tool" if called else "was answered without a text"
        raise Problem(f"prompt {index + 1}", f"{what}, and only texts are read from a server")
    return Answer(text, (), "length" if held.get("finish_reason") == "length" else "stop")
