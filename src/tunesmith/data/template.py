"""The one renderer of chats: the tokenizer's own Jinja template, with the features of transformers, under limits.

    messages, tools ──▶ Template.render ──▶ Rendered(text, spans of {% generation %})
                            └─ or, for chats of a known shape, the pieces that it writes around texts (`shapes.py`)

A template is a program that comes with a model, so it runs in Jinja's immutable sandbox, and three layers bound what
it can use up:

1. a meter compiled into it (`sandbox.py`), which works in any thread and on any system;
2. a limit on what it may write;
3. where the system has them, and in the main thread, a timer and a limit on memory.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date as Date
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.exceptions import SecurityError

from tunesmith.core.problem import Problem
from tunesmith.data import sandbox
from tunesmith.data.limits import limited
from tunesmith.data.sandbox import CLOSE, METER, OPEN, Exceeded, Meter, compile_template
from tunesmith.data.shapes import Shapes, key_of

CHATML = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% endif %}
{{- 'These functions may be called:\\n<tools>\\n' }}
{%- for tool in tools %}{{- (tool | tojson) + '\\n' }}{% endfor %}
{{- '</tools>\\nA call is written as a JSON object with "name" and "arguments" within <tool_call></tool_call>.' }}
{{- '<|im_end|>' + '\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if not (tools and loop.first and message.role == 'system') %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.reasoning_content %}{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{%- set function = call.function or call %}
{{- '\\n' if message.content or not loop.first }}
{{- '<tool_call>\\n{"name": ' + (function.name | tojson) + ', "arguments": ' }}
{{- function.arguments if function.arguments is string else function.arguments | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>' + '\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""
"""ChatML, with tools and reasoning, for base models whose vocabulary has its two markers as tokens."""

CHATML_PLAIN = CHATML.replace("'<|im_end|>'", "eos_token")
"""ChatML for vocabularies without the markers: they are plain text, and a turn ends with the model's own end token."""

FROZEN_DATE = "2025-01-01"
"""The day that `strftime_now` tells templates, so that the same row gives the same tokens tomorrow."""

MAX_SOURCE = 1 << 20
MAX_SECONDS = 10.0
MAX_MEGABYTES = 1024

RESERVED = re.compile("[\ufdd0-\ufdef]")
"""Unicode noncharacters, which no text may hold; the renderer and the encoder mark places with them."""

_MESSAGE_LIMIT = 300


class TemplateRefusal(ValueError):
    """The template cannot write this chat: it said so, or the chat lacks what it reads."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A chat as text, and the [start, stop) spans that the template marked as written by the model."""

    text: str
    spans: tuple[tuple[int, int], ...] = ()


class Template:
    """A compiled chat template."""

    def __init__(self, source: str, specials: Mapping[str, str], date: str = FROZEN_DATE) -> None:
        """specials: names as templates use them, such as `bos_token`; date: what `strftime_now` tells, ISO.

        Raises:
            Problem: the source is no template, or too long.
        """
        if len(source) > MAX_SOURCE:
            raise Problem("chat template", f"has {len(source):,} characters; at most {MAX_SOURCE:,} are read")
        self._specials = dict(specials)
        self._shapes = Shapes(source, self._specials, Date.fromisoformat(date))
        with _bounded():
            self._compiled = compile_template(source, Date.fromisoformat(date))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = False,
        **more: Any,
    ) -> Rendered:
        """The text of a chat.

        Raises:
            TemplateRefusal: the template refuses this chat, or cannot read it.
            Problem: the template leaves its sandbox or its limits.
        """
        key = None if tools or more else key_of(messages, add_generation_prompt)
        if key is not None and (text := self._shapes.text(key, messages)) is not None:
            return _unmark(text)
        names: dict[str, Any] = {
            **self._specials,
            **more,
            "messages": list(messages),
            "tools": list(tools) or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        with _bounded():
            text = _write(self._compiled.generate({**names, METER: Meter()}))
            if key is not None and self._shapes.due(key):
                self._shapes.learn(key, messages, text, names)
        return _unmark(text)


def _write(blocks: Iterator[str]) -> str:
    parts: list[str] = []
    size = 0
    for block in blocks:
        size += len(block)
        if size > sandbox.MAX_TEXT:
            raise Exceeded(f"writes more than {sandbox.MAX_TEXT:,} characters")
        parts.append(block)
    return "".join(parts)


def _unmark(text: str) -> Rendered:
    """Take the marks of `{% generation %}` out and keep their places."""
    if OPEN not in text:
        return Rendered(text)
    out: list[str] = []
    spans: list[tuple[int, int]] = []
    at = start = 0
    for part in re.split(f"([{OPEN}{CLOSE}])", text):
        if part == OPEN:
            start = at
        elif part == CLOSE:
            spans.append((start, at))
        else:
            out.append(part)
            at += len(part)
    return Rendered("".join(out), tuple(spans))


@contextmanager
def _bounded() -> Generator[None, None, None]:
    """Run a template within the limits of the system, and say what it did in our words."""
    try:
        with limited(MAX_SECONDS, MAX_MEGABYTES):
            yield
    except Exceeded as error:
        raise _stopped(str(error)) from error
    except TimeoutError as error:
        raise _stopped(f"takes longer than {MAX_SECONDS:.0f} seconds") from error
    except (MemoryError, OverflowError) as error:
        raise _stopped(f"needs more than {MAX_MEGABYTES:,} MB of memory") from error
    except RecursionError as error:
        raise _stopped("calls itself without end") from error
    except SecurityError as error:
        raise _stopped(f"reaches for what a template must not touch ({_short(error)})") from error
    except TemplateSyntaxError as error:
        raise Problem(
            "chat template", f"line {error.lineno} is not Jinja: {_short(error)}", "Mend the template, or set chatml"
        ) from error
    except TemplateError as error:
        raise TemplateRefusal(f"the chat template refuses this chat: {_short(error)}") from error
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise TemplateRefusal(f"the chat template cannot read this chat: {_short(error)}") from error


def _stopped(what: str) -> Problem:
    return Problem(
        "chat template", f"was stopped: it {what}", "Do not trust this template; set model.chat_template: chatml"
    )


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MESSAGE_LIMIT else text[:_MESSAGE_LIMIT] + " …"
