"""Texts of which a template sees nothing, and the sandbox that it meets them in.

An `Opaque` is a string that can be written, put between other strings, stripped and found not to be empty. Everything
else that a template could do with a string (compare it, measure it, search it, cut it, give it to a filter or
function) raises `Unclear`: it would depend on the text. What has no such hook is closed off in other ways:

    {{ x }} a + b  a ~ b  x.strip()  x | trim  if x     are known for any text
    a == b  a < b  b in a  a[0]  a | length             are methods of the string itself, which raise
    a in "abc"                                          is computed inside of `str`: looked for in the template's tree
    filters, tests, functions, methods of other values  take no opaque text but where it is known what they do
    {% set x %}…{% endset %}                            makes a plain string: such templates are not traced
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable, Sized
from datetime import date as Date
from functools import wraps
from typing import Any, NoReturn

from jinja2 import nodes, pass_context
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.runtime import Context, Macro, Undefined
from jinja2.tests import TESTS
from jinja2.utils import Namespace

from tunesmith.data.sandbox import CALL_PRICE, MAX_WORK, Meter, Sandbox, compiled

MARK = "\ufdd5"
"""Stands before the number of a text."""
TRACE = "the trace"
"""The name of the `Trace` among a template's variables; no template can spell it."""
_FIRST = 0x100000
_STRIPS = frozenset(("strip", "lstrip", "rstrip"))
_READING = frozenset(("get", "items", "keys", "values"))
"""Methods of objects that look at no value."""
_SCOPES = ("_loop_vars", "_block_vars")
"""What Jinja adds to the arguments of every call, for functions that look up variables."""
_KINDS = ("defined", "undefined", "none", "string", "mapping", "number", "integer", "float", "boolean", "true", "false")
"""Tests that ask what a value is, not what it says."""
_CLOSED = {*dir(str), "__radd__", "__rmul__", "__reversed__"} - {
    *("__new__", "__init__", "__class__", "__doc__", "__str__", "__dir__", "__sizeof__", "__getattribute__"),
    *("__setattr__", "__delattr__", "__init_subclass__", "__subclasshook__", "__reduce__", "__reduce_ex__"),
    *("__getstate__", "__getnewargs__", "__eq__", "__ne__", *_STRIPS),
}
"""Methods of strings that an opaque one has not."""

Strips = tuple[tuple[str, str | None], ...]


class Unclear(Exception):
    """What the template does next depends on a text."""


class Trace:
    """One run of a template over marks: which texts they are, and what it cost."""

    def __init__(self) -> None:
        self.marks: list[tuple[int, Strips]] = []
        self.meter = Meter()
        self.unclear = False
        self._values = self._written = self._marked = 0

    def mark(self, number: int, strips: Strips = ()) -> Opaque:
        """A mark for the text of a message, which is not empty, stripped so."""
        self.marks.append((number, strips))
        return Opaque(f"{MARK}{chr(_FIRST + len(self.marks) - 1)}", self)

    def note(self, value: Any) -> Any:
        """A value that a template made, the length of texts noted; opaque where it holds marks."""
        if not isinstance(value, str):
            return value
        text = str(value)
        marks = text.count(MARK)
        self._values += 1
        self._written = max(self._written, len(text))
        self._marked = max(self._marked, marks)
        return Opaque(text, self) if marks else value

    def longest(self, most_text: int, most_work: int) -> int:
        """So many characters all texts together may have, for no value to pass the one limit and no run the other.

        A value of n characters costs n / 16 of the work; it holds at most so much that the template wrote, and each
        text at most so often.
        """
        left = most_work - (MAX_WORK - self.meter.left)
        room = min(most_text, 16 * left // (self._values + 1)) - self._written
        return room // max(1, self._marked)


class Opaque(str):
    """A string made of marks and what stands around them."""

    trace: Trace

    def __new__(cls, text: str, trace: Trace) -> Opaque:
        made = super().__new__(cls, text)
        made.trace = trace
        return made

    @staticmethod
    def number(mark: str) -> int:
        """The number of a mark in its trace."""
        return ord(mark) - _FIRST

    def stop(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises: Unclear: always, and the trace remembers."""
        self.trace.unclear = True
        raise Unclear

    def __bool__(self) -> bool:
        first, *others = str(self).split(MARK)
        marks = [self.trace.marks[Opaque.number(part[0])] for part in others]
        if first or any(len(part) > 1 for part in others) or any(not strips for _, strips in marks):
            return True
        self.stop()

    def __eq__(self, other: object) -> bool:
        if other is None:
            return False
        if type(other) is str and other == "":
            return not self
        self.stop()

    def __ne__(self, other: object) -> bool:
        return not self == other

    def strip(self, chars: str | None = None, /) -> Opaque:
        return self._stripped("strip", chars)

    def lstrip(self, chars: str | None = None, /) -> Opaque:
        return self._stripped("lstrip", chars)

    def rstrip(self, chars: str | None = None, /) -> Opaque:
        return self._stripped("rstrip", chars)

    def _stripped(self, name: str, characters: str | None) -> Opaque:
        text = str(self)
        if len(text) != 2 or not (characters is None or type(characters) is str):
            self.stop()
        number, strips = self.trace.marks[Opaque.number(text[1])]
        return self.trace.mark(number, (*strips, (name, characters)))


for _name in _CLOSED:
    setattr(Opaque, _name, Opaque.stop)


def compile_opaque(source: str, date: Date) -> Any | None:
    """A template to be run with marks; None where marks could be lost in it, or met.

    Raises:
        TemplateSyntaxError: the source is no template.
    """
    environment = _Blind(date)
    tree = environment.parse(source)
    texts = [node.data for node in tree.find_all(nodes.TemplateData)]
    texts += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    if MARK in "".join(texts) or any(tree.find_all((nodes.AssignBlock, nodes.FilterBlock))):
        return None
    for compare in list(tree.find_all(nodes.Compare)):
        if any(operand.op in ("in", "notin") for operand in compare.ops):
            _guard(compare)
    return compiled(environment, tree)


def _guard(compare: nodes.Compare) -> None:
    """Let no operand but the last be opaque, which would be looked for inside of another text."""
    for node in [compare, *compare.ops][:-1]:
        node.expr = nodes.Filter(node.expr, "known!", [], [], None, None, lineno=compare.lineno)


class _Blind(Sandbox):
    """The sandbox in which texts are opaque; everything that they could be lost to is closed, or known."""

    def __init__(self, date: Date) -> None:
        super().__init__(date)
        known: dict[str, Callable[..., Any]] = {
            "metered!": self.filters["metered!"],
            "joined!": _joined,
            "known!": _known,
            "trim": _trim,
            **dict.fromkeys(("default", "d"), FILTERS["default"]),
            **dict.fromkeys(("length", "count"), len),
        }
        self.filters = {name: _careful(function) for name, function in self.filters.items()} | known
        self.tests = {name: _careful(function) for name, function in TESTS.items()}
        self.tests |= {name: TESTS[name] for name in _KINDS}
        self.tests |= {name: _or_a_string(TESTS[name]) for name in ("iterable", "sequence")}

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Opaque):
            return getattr(obj, attribute) if attribute in _STRIPS else obj.stop()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(_known(obj), _known(argument))

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        trace: Trace = context[TRACE]
        own = getattr(obj, "__self__", None)
        given = (*args, *(value for name, value in kwargs.items() if name not in _SCOPES))
        if isinstance(own, Opaque):
            trace.meter.pay(CALL_PRICE)
            return trace.note(obj(*given))
        if _passes_on(obj, own):
            trace.meter.pay(CALL_PRICE)
            made = super(Sandbox, self).call(context, obj, *args, **kwargs)
            trace.meter.pay(0 if isinstance(made, str) or not isinstance(made, Sized) else len(made) >> 4)
            return trace.note(made)
        if not all(map(_plain, given)) or not (_plain(own) or obj in self.globals.values()):
            raise Unclear
        return trace.note(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        trace: Trace = context[TRACE]
        if isinstance(left, Opaque) or isinstance(right, Opaque):
            if operator != "+" or not {type(left), type(right)} <= {str, Opaque}:
                raise Unclear
            return trace.note(str(left) + str(right))
        if operator != "+" and not (_plain(left) and _plain(right)):
            raise Unclear
        return trace.note(super().call_binop(context, operator, left, right))


def _passes_on(obj: Any, own: Any) -> bool:
    """Whether what is called does nothing to texts but what a template does itself."""
    reads = type(own) is dict and getattr(obj, "__name__", "") in _READING
    return reads or isinstance(obj, Macro) or obj is Namespace or isinstance(own, Extension)


def _careful(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that is given no opaque text, nor anything that could hold one."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def careful(*args: Any, **kwargs: Any) -> Any:
        if not all(map(_plain, (*args[first:], *kwargs.values()))):
            raise Unclear
        return function(*args, **kwargs)

    return careful


def _or_a_string(test: Callable[..., Any]) -> Callable[..., Any]:
    def asked(value: Any) -> bool:
        return isinstance(value, str) or test(value)

    return asked


@pass_context
def _joined(context: Context, parts: list[Any]) -> Any:
    """What `~` makes."""
    return context[TRACE].note("".join(map(str, parts)))


def _known(value: Any) -> Any:
    return value.stop() if isinstance(value, Opaque) else value


def _trim(value: Any, characters: str | None = None) -> Any:
    if isinstance(value, Opaque):
        return value.strip(characters)
    if not _plain(value):
        raise Unclear
    return FILTERS["trim"](value, characters)


def _plain(value: Any) -> bool:
    """Whether a value neither is nor holds an opaque text."""
    return value is None or type(value) in (str, bool, int, float) or isinstance(value, Undefined)
