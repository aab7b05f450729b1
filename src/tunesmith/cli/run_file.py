"""A run file as text: what is set stands as YAML, everything else as a comment with its default.

A line that begins with `# ` is help; a line that begins with `#` and a name is an option that can be switched on.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, cast

from tunesmith.cli.manual import Manual, Member, Option

WIDTH = 112
HEAD = """\
# A run file of tunesmith: all choices of one experiment.
#
#   tunesmith plan {name}     what it will take
#   tunesmith train {name}    train it
#
# Options that are commented out (#name: value) have that value already; take the # away to change them.
"""


def write_out(value: Mapping[str, Any], name: str, manual: Manual | None = None) -> str:
    """The commented run file of plain data; `name` is what the file will be called."""
    manual = manual or Manual.shipped()
    blocks = ["\n".join(_block(manual, option, value)) for option in manual.fields.values()]
    return HEAD.format(name=name) + "\n" + "\n\n".join(blocks) + "\n"


def _block(manual: Manual, field: Option, value: Mapping[str, Any]) -> Iterator[str]:
    """The lines of one top-level name."""
    yield from _comment(field.help, "")
    if field.name in manual.families:
        yield from _family(manual, field, value.get(field.name, field.default))
    elif field.name == "data":
        yield from _sources(manual.sections["data"], cast("list[dict[str, Any]]", value["data"]))
    elif field.name in manual.sections:
        options = manual.sections[field.name]
        yield f"{field.name}:"
        yield from _options(options, value.get(field.name) or {options[0].name: options[0].default}, "  ")
    else:
        yield _line(field, value, "")


def _family(manual: Manual, field: Option, chosen: Any) -> Iterator[str]:
    members = manual.families[field.name]
    width = max(len(member.name) for member in members)
    for member in members:
        begins = f"#   {member.name:<{width}}  "
        yield from textwrap.wrap(
            member.summary, WIDTH, initial_indent=begins, subsequent_indent=f"#{' ' * (width + 5)}"
        )
    name, options = (chosen, {}) if isinstance(chosen, str) else next(iter(cast("dict[str, Any]", chosen).items()))
    member = cast("Member", manual.member(field.name, name))
    yield f"{field.name}:"
    yield f"  {name}:" if member.options else f"  {name}: {{}}"
    yield from _options(member.options, options or {}, "    ")


def _sources(options: tuple[Option, ...], sources: list[dict[str, Any]]) -> Iterator[str]:
    """The sources; the help stands with the first."""
    yield "data:"
    for number, source in enumerate(sources):
        yield "  -"
        shown = options if number == 0 else tuple(option for option in options if option.name in source)
        yield from _options(shown, source, "    ", helped=number == 0)


def _options(
    options: tuple[Option, ...], value: Mapping[str, Any], indent: str, *, helped: bool = True
) -> Iterator[str]:
    for option in options:
        if helped:
            yield from _comment(_with_kind(option), indent)
        yield _line(option, value, indent)


def _with_kind(option: Option) -> str:
    return f"{option.help} ({option.type})" if option.type not in ("str", "mapping") else option.help


def _line(option: Option, value: Mapping[str, Any], indent: str) -> str:
    if option.name in value:
        return f"{indent}{option.name}: {_scalar(value[option.name])}"
    return f"{indent}#{option.name}: {_scalar(option.default)}"


def _comment(text: str, indent: str) -> Iterator[str]:
    for line in textwrap.wrap(text, WIDTH - len(indent), break_long_words=False, break_on_hyphens=False):
        yield f"{indent}# {line}"


def _scalar(value: Any) -> str:
    """A value on one line; JSON is YAML, and plain words need no quotes."""
    if isinstance(value, str) and _is_plain(value):
        return value
    return json.dumps(value, ensure_ascii=False)


def _is_plain(text: str) -> bool:
    import yaml

    if not text or (any(mark in text for mark in ": #{}[],&*!|>'\"%@`\n") and not text.startswith("builtin:")):
        return False
    return yaml.safe_load(text) == text
