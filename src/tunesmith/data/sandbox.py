"""Where chat templates run: Jinja's immutable sandbox, with transformers' additions and a meter compiled in.

A template is a program of strangers. The meter bounds what it can use up, in any thread and on any system:

    {% for x in items %}   ─▶  {% for x in items | metered!(price) %}    pays for its turns by the size of its body
    a ~ b                  ─▶  [a, b] | joined!                           is measured
    a + b, a * b, a ** b   ─▶  checked before or as they are computed
    calls, filters, range  ─▶  pay, and take no number that a chat needs nothing of
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from datetime import date as Date
from functools import wraps
from typing import Any, cast

from jinja2 import TemplateError, nodes, pass_context
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_WORK = 20_000_000
MAX_TEXT = 1 << 24
MAX_NUMBER = 1_000_000

OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""What `{% generation %}` leaves around its text."""

_WIDE_FORMAT = re.compile(r"\d{6,}|\*|\{[^{}]*\{")
_SIZED: tuple[type[Sized], ...] = (str, bytes, list, tuple, dict, set, frozenset)


class Meter:
    """What one rendering may still do."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MAX_WORK

    def pay(self, work: int) -> None:
        """Raises: Exceeded: more work than a rendering may do."""
        self.left -= work
        if self.left < 0:
            raise Exceeded(f"does more than {MAX_WORK:,} units of work")


class Exceeded(Exception):
    """A limit of the meter was passed; the message goes on after "it"."""


METER = "the meter"
"""The meter's name among a template's variables; no template can spell it."""


def compile_template(source: str, date: Date) -> Any:
    """A Jinja template in the sandbox, with the meter in it; to be rendered with a `Meter` under the name `METER`.

    Raises:
        TemplateSyntaxError: the source is no template.
    """
    environment = Sandbox(date)
    return compiled(environment, environment.parse(source))


def compiled(environment: Sandbox, tree: nodes.Template) -> Any:
    """A template from its tree, with the meter put in."""
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


class Sandbox(ImmutableSandboxedEnvironment):
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

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute not in _OF_DICTS:  # nearly every look-up of a template, without a detour
            found = cast("dict[str, Any]", obj)
            return found[attribute] if attribute in found else self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        meter: Meter = context[METER]
        meter.pay(CALL_PRICE)
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
            raise Exceeded("formats text to a huge width")
        result = _OPERATORS[operator](left, right)
        return _checked(result, context[METER])

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        text = getattr(value, "__self__", None)
        if isinstance(text, str) and getattr(value, "__name__", "").startswith("format") and _WIDE_FORMAT.search(text):
            raise Exceeded("formats text to a huge width")
        return super().wrap_str_format(value)


class _Generation(Extension):
    """`{% generation %}` … `{% endgeneration %}`: what the model writes, marked in the text itself."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        return f"{OPEN}{caller()}{CLOSE}"


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "*": operator.mul,
    "**": lambda left, right: left**right,
    "%": operator.mod,
}
_OF_DICTS = frozenset(dir(dict))
CALL_PRICE = 50
_LONG = 10_000


def _checked(value: Any, meter: Meter) -> Any:
    """A value that a template made, if it is not too large; long ones are paid for."""
    if isinstance(value, _SIZED):
        size = len(value)
        if size > MAX_TEXT:
            raise Exceeded(f"makes a value of {size:,} parts")
        meter.pay(size >> 4)
    return value


def _check_numbers(args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise Exceeded("calls a function with a huge number")


def _check_replace(text: str, args: tuple[Any, ...]) -> None:
    if len(args) > 1 and isinstance(args[1], str) and len(text) * max(1, len(args[1])) > MAX_TEXT * CALL_PRICE:
        raise Exceeded("replaces its way to a huge text")


def _check_product(left: Any, right: Any) -> None:
    for part, times in ((left, right), (right, left)):
        if isinstance(part, _SIZED) and isinstance(times, int) and len(part) * times > MAX_TEXT:
            raise Exceeded(f"repeats a text or list to {len(part) * times:,} parts")
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > _LONG:
        raise Exceeded("computes with huge numbers")


def _check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _LONG:
        raise Exceeded("computes with huge numbers")


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that refuses huge numbers and huge results."""

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        _check_numbers((value for value in args[1:] if not isinstance(value, bool)), kwargs)
        result = function(*args, **kwargs)
        if isinstance(result, _SIZED) and len(result) > MAX_TEXT:
            raise Exceeded(f"makes a value of {len(result):,} parts")
        return result

    return guarded


@pass_context
def _metered(context: Context, items: Any, price: int) -> Any:
    """The items of a loop, paid for by their number; what has no length is paid for one by one."""
    meter: Meter = context[METER]
    try:
        meter.pay(len(items) * price)
    except TypeError:
        return _pay_each(items, meter, price)
    return items


def _pay_each(items: Iterable[Any], meter: Meter, price: int) -> Iterator[Any]:
    for item in items:
        meter.pay(price)
        yield item


@pass_context
def _joined(context: Context, parts: list[Any]) -> str:
    """What `~` makes."""
    return _checked("".join(map(str, parts)), context[METER])


@pass_context
def _range(context: Context, *args: int) -> range:
    numbers = range(*args)
    if len(numbers) > MAX_NUMBER:
        raise Exceeded(f"counts over {len(numbers):,} numbers")
    context[METER].pay(len(numbers))
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
