"""A reward of your own: one Python function in a file.

    def reward(answer: str, key: str) -> float: ...

It is called with those of these that it names: `prompt` (the last turn), `answer`, `key`, `messages` (all turns of the
prompt, as dictionaries with role and content), `tokens` (how many the answer has) and `ended` (stop, or length where it
was cut). The file is run as a program of yours, with all your rights: name only files that you trust.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from tunesmith.core.own_code import Function, OwnFunction
from tunesmith.models.policy import Policy
from tunesmith.rewards import Asked, Judge, Reward


class Python(Reward):
    """A function in a Python file, called with each answer, its prompt and its key; larger is better."""

    path: str
    """The Python file."""
    function: str = "reward"
    """The function in it, such as `(prompt: str, answer: str, key: str) -> float`."""

    def open(self, beside: Policy | None = None) -> Judge:
        own = OwnFunction(self.path, self.function, "reward")
        function = own.load()
        wanted = _wanted(function)

        def judge(asked: Sequence[Asked]) -> list[float]:
            return [own.number(function, row, **_given(one, wanted)) for row, one in enumerate(asked)]

        return judge


def _wanted(function: Function) -> frozenset[str] | None:
    """The names that a function takes; None for all."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # written in C
        return frozenset({"prompt", "answer", "key"})
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
        return None
    return frozenset(one.name for one in parameters)


def _given(asked: Asked, wanted: frozenset[str] | None) -> dict[str, object]:
    offered: dict[str, object] = {
        "prompt": asked.question,
        "answer": asked.text,
        "key": asked.key,
        "messages": [message.plain() for message in asked.messages],
        "tokens": asked.tokens,
        "ended": asked.ended,
    }
    return offered if wanted is None else {name: value for name, value in offered.items() if name in wanted}
