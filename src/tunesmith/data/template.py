"""The one renderer of chats: the tokenizer's own Jinja template, with the features of transformers, under limits.

    messages, tools ──▶ Template.render ──▶ Rendered(text, spans of {% generation %})

A template is a program that comes with a model, so it runs in Jinja's immutable sandbox, and three layers bound what
it can use up:

1. a meter compiled into it: loops, calls and `range` pay for every turn, joins and products are measured before or
   as they are made, and numbers no chat needs are refused (works in any thread and on any system);
2. a limit on what it may write;
3. where the system has them, and in the main thread, a timer and a limit on memory.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date as Date
from functools import wraps
from typing import Any, cast

from jinja2 import TemplateError, TemplateSyntaxError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tunesmith.core.problem import Problem
from tunesmith.data.limits import limited

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
MAX_WORK = 20_000_000
MAX_TEXT = 1 << 24
MAX_NUMBER = 1_000_000
MAX_SECONDS = 10.0
MAX_MEGABYTES = 1024

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
RESERVED = re.compile("[\ufdd0-\ufdef]")
"""Unicode noncharacters, which no text may hold; the renderer and the encoder mark places with them."""

_WIDE_FORMAT = re.compile(r"\d{6,}|\*|\{[^{}]*\{")
_SIZED: tuple[type[Sized], ...] = (str, bytes, list, tuple, dict, set, frozenset)
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
        self.marks_answers = bool(re.search(r"\{%-?\s*generation\s*-?%\}", source))
        with _bounded():
            self._compiled = _compile(source, Date.fromisoformat(date))

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
        names: dict[str, Any] = {
            **self._specials,
            **more,
            "messages": list(messages),
            "tools": list(tools) or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            _METER: _Meter(),
        }
        with _bounded():
            return _unmark(_write(self._compiled.generate(names)))


class _Meter:
    """What one rendering may still do."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MAX_WORK

    def pay(self, work: int) -> None:
        self.left -= work
        if self.left < 0:
            raise _Exceeded(f"does more than {MAX_WORK:,} units of work")


class _Exceeded(Exception):
    """A limit of rendering was passed."""


_METER = "the meter"
"""The meter's name among a template's variables; no template can spell it."""


def _write(blocks: Iterator[str]) -> str:
    parts: list[str] = []
    size = 0
    for block in blocks:
        size += len(block)
        if size > MAX_TEXT:
            raise _Exceeded(f"writes more than {MAX_TEXT:,} characters")
        parts.append(block)
    return "".join(parts)


def _unmark(text: str) -> Rendered:
    """Take the marks of `{% generation %}` out and keep their places."""
    if _OPEN not in text:
        return Rendered(text)
    out: list[str] = []
    spans: list[tuple[int, int]] = []
    at = start = 0
    for part in re.split(f"([{_OPEN}{_CLOSE}])", text):
        if part == _OPEN:
            start = at
        elif part == _CLOSE:
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
    except _Exceeded as error:
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


def _compile(source: str, date: Date) -> Any:
    environment = _Sandbox(date)
    tree = environment.parse(source)
    _add_meter(tree)
    code = environment.compile(tree)
    return environment.template_class.from_code(environment, code, environment.make_globals(None))


def _add_meter(tree: nodes.Template) -> None:
    """Let every loop pay for its turns, by the size of its body, and measure what `~` joins."""
    for loop in list(tree.find_all(nodes.For)):
        price = nodes.Const(1 + sum(1 for part in loop.body for _ in part.find_all(nodes.Node)))
        loop.iter = nodes.Filter(loop.iter, "metered!", [price], [], None, None, lineno=loop.lineno)
    _replace_concat(tree)


def _replace_concat(node: nodes.Node) -> None:
    for name, value in node.iter_fields():
        if isinstance(value, list):
            setattr(node, name, [_measured(part) for part in cast("list[Any]", value)])
        else:
            setattr(node, name, _measured(value))


def _measured(value: Any) -> Any:
    if not isinstance(value, nodes.Node):
        return value
    _replace_concat(value)
    if isinstance(value, nodes.Concat):
        parts = nodes.List(value.nodes, lineno=value.lineno)
        return nodes.Filter(parts, "joined!", [], [], None, None, lineno=value.lineno)
    return value


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox with transformers' additions and a meter."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, date: Date) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Generation, LoopControlExtension]
        )
        self.filters = {name: _guarded(function) for name, function in self.filters.items()}
        self.filters |= {"tojson": _guarded(_tojson), "metered!": _metered, "joined!": _joined}
        self.filters.pop("random")
        shared = cast("dict[str, Any]", self.globals)  # pyright: ignore[reportUnknownMemberType]
        shared.pop("lipsum")
        shared |= {"range": _range, "raise_exception": _raise_exception, "strftime_now": date.strftime}

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        meter: _Meter = context[_METER]
        meter.pay(_CALL_PRICE)
        _check_numbers(args, kwargs)
        text = getattr(obj, "__self__", None)
        if isinstance(text, str) and len(text) > _LONG and getattr(obj, "__name__", "") == "replace":
            _check_replace(text, args)
        result = super().call(context, obj, *args, **kwargs)
        return result if isinstance(obj, Macro) else _checked(result, meter)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            _check_product(left, right)
        elif operator == "**":
            _check_power(left, right)
        elif operator == "%" and isinstance(left, str) and _WIDE_FORMAT.search(left):
            raise _Exceeded("formats text to a huge width")
        result = _OPERATORS[operator](left, right)
        return _checked(result, context[_METER])

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        text = getattr(value, "__self__", None)
        if isinstance(text, str) and getattr(value, "__name__", "").startswith("format") and _WIDE_FORMAT.search(text):
            raise _Exceeded("formats text to a huge width")
        return super().wrap_str_format(value)


class _Generation(Extension):
    """`{% generation %}` … `{% endgeneration %}`: what the model writes, marked in the text itself."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        return f"{_OPEN}{caller()}{_CLOSE}"


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "*": operator.mul,
    "**": lambda left, right: left**right,
    "%": operator.mod,
}
_CALL_PRICE = 50
_LONG = 10_000


def _checked(value: Any, meter: _Meter) -> Any:
    """A value that a template made, if it is not too large; long ones are paid for."""
    if isinstance(value, _SIZED):
        size = len(value)
        if size > MAX_TEXT:
            raise _Exceeded(f"makes a value of {size:,} parts")
        meter.pay(size >> 4)
    return value


def _check_numbers(args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise _Exceeded("calls a function with a huge number")


def _check_replace(text: str, args: tuple[Any, ...]) -> None:
    if len(args) > 1 and isinstance(args[1], str) and len(text) * max(1, len(args[1])) > MAX_TEXT * _CALL_PRICE:
        raise _Exceeded("replaces its way to a huge text")


def _check_product(left: Any, right: Any) -> None:
    for part, times in ((left, right), (right, left)):
        if isinstance(part, _SIZED) and isinstance(times, int) and len(part) * times > MAX_TEXT:
            raise _Exceeded(f"repeats a text or list to {len(part) * times:,} parts")
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > _LONG:
        raise _Exceeded("computes with huge numbers")


def _check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _LONG:
        raise _Exceeded("computes with huge numbers")


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that refuses huge numbers and huge results."""

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        _check_numbers((value for value in args[1:] if not isinstance(value, bool)), kwargs)
        result = function(*args, **kwargs)
        if isinstance(result, _SIZED) and len(result) > MAX_TEXT:
            raise _Exceeded(f"makes a value of {len(result):,} parts")
        return result

    return guarded


@pass_context
def _metered(context: Context, items: Any, price: int) -> Any:
    """The items of a loop, paid for by their number; what has no length is paid for one by one."""
    meter: _Meter = context[_METER]
    try:
        meter.pay(len(items) * price)
    except TypeError:
        return _pay_each(items, meter, price)
    return items


def _pay_each(items: Iterable[Any], meter: _Meter, price: int) -> Iterator[Any]:
    for item in items:
        meter.pay(price)
        yield item


@pass_context
def _joined(context: Context, parts: list[Any]) -> str:
    """What `~` makes."""
    return _checked("".join(map(str, parts)), context[_METER])


@pass_context
def _range(context: Context, *args: int) -> range:
    numbers = range(*args)
    if len(numbers) > MAX_NUMBER:
        raise _Exceeded(f"counts over {len(numbers):,} numbers")
    context[_METER].pay(len(numbers))
    return numbers


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
