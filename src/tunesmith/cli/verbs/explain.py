"""What a plug-in or an option of a run file is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli import screen

if TYPE_CHECKING:
    from tunesmith.cli.manual import Manual, Member, Option
    from tunesmith.train.survey import Shape

EPILOG = """\
Examples:

  tunesmith explain
  tunesmith explain lora
  tunesmith explain train.warmup
  tunesmith explain data
  tunesmith explain method --on builtin:seedling

Names are written as in a run file; the last part is enough where it is
clear. With --on MODEL, what a method (or every method) costs on that model
is counted from its shapes: parameters, optimizer state, activations."""

IN_RUN_FILES = ("objective", "method", "optimizer")
COST_HEAD = ("method", "learns", "of all", "weights", "gradients", "optimizer", "activations")


def explain(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A plug-in, an option such as train.warmup, or a section such as train."),
    ] = None,
    on: Annotated[
        str | None, typer.Option("--on", metavar="MODEL", help="Count what a method costs on this model.")
    ] = None,
    optimizer: Annotated[str, typer.Option("--optimizer", help="The optimizer that --on counts with.")] = "adamw",
    tokens: Annotated[
        int, typer.Option("--tokens", min=2, help="Tokens of a micro-batch that --on counts with.")
    ] = 4096,
) -> None:
    """Explain any plug-in or option of a run file: what it is, what it may be, its default, its paper."""
    from tunesmith.cli.manual import Manual

    manual = Manual.shipped()
    if on is not None:
        _costs(manual, name or "method", on, optimizer, tokens)
    elif name is None:
        _everything(manual)
    elif _alias(manual, name):
        return
    elif not _exact(manual, name) and not _by_last_part(manual, name):
        raise _unknown(manual, name)


def _alias(manual: Manual, name: str) -> bool:
    """Explain a name that stands for others, and then what it stands for; False if it is none."""
    from tunesmith.core.aliases import ALIASES

    for family, aliases in ALIASES.items():
        alias = aliases.get(name.removeprefix(f"{family}."))
        member = manual.member(family, alias.plug) if alias else None
        if alias and member:
            screen.heading(name)
            screen.say(alias.help)
            screen.say(f"In a run file, {alias.told(family, name.removeprefix(f'{family}.'))}.")
            _member(member)
            return True
    return False


def _everything(manual: Manual) -> None:
    screen.heading("sections of a run file")
    screen.pairs((name, option.help) for name, option in manual.fields.items())
    for family, members in manual.families.items():
        screen.heading(f"{family}s" if not family.endswith("s") else family)
        screen.pairs((member.name, member.summary) for member in members)
    screen.say()
    screen.say("`tunesmith explain NAME` tells all about one of them.")


def _costs(manual: Manual, name: str, model: str, optimizer: str, tokens: int) -> None:
    """A table of what methods cost on a model."""
    from tunesmith.core.problem import Problem, nearest

    known = [member.name for member in manual.families["method"]]
    name = name.removeprefix("method.")
    if name not in ("method", *known):
        raise Problem(name, "is no method, and --on counts what methods cost", nearest(name, known))
    from tunesmith.train.cost import costs

    screen.hush()
    row = min(tokens, 512)
    found = costs(model, known if name == "method" else [name], optimizer, tokens=tokens, row=row)
    rows = [_cost(cost.method, cost.shape) for cost in found if cost.shape is not None]
    screen.heading(f"cost on {model}, with {optimizer} and {tokens:,} tokens in rows of {row:,}")
    screen.table(COST_HEAD, rows, numbers=range(1, len(COST_HEAD)))
    for cost in found:
        if cost.refused:
            screen.say(f"{cost.method}: {cost.refused}")


def _cost(name: str, shape: Shape) -> tuple[str, ...]:
    from tunesmith.train.survey import gigabytes

    memory = shape.memory
    parts = (memory.weights + memory.learns, memory.gradients, memory.optimizer, memory.activations)
    return (name, f"{shape.trainable:,}", f"{shape.trainable / shape.all:.3%}", *map(gigabytes, parts))


def _exact(manual: Manual, name: str) -> bool:
    """Explain a section, a family, or a name written out; False if it is none of them."""
    head, _, rest = name.partition(".")
    if not rest:
        known = head in manual.sections or head in manual.families or head in manual.fields
        if known:
            _section(manual, head)
        return known
    parts = [part for part in rest.split(".") if not part.isdigit()]
    if head in manual.sections and len(parts) == 1:
        found = [option for option in manual.sections[head] if option.name == parts[0]]
        for option in found:
            _option(option, f"{head}.{option.name}")
        return bool(found)
    member = manual.member(head, parts[0]) if parts else None
    return member is not None and _in_member(member, parts[1:])


def _in_member(member: Member, rest: list[str]) -> bool:
    if not rest:
        _member(member)
        return True
    found = [option for option in member.options if [option.name] == rest]
    for option in found:
        _option(option, f"{member.family}.{member.name}.{option.name}")
    return bool(found)


def _by_last_part(manual: Manual, name: str) -> bool:
    """Explain everything of this name: plug-ins, their options (`lora.rank`), options of sections."""
    head, _, rest = name.partition(".")
    members = [member for members in manual.families.values() for member in members if member.name == head]
    hits = [_in_member(member, rest.split(".") if rest else []) for member in members]
    if any(hits) or rest:
        return any(hits)
    found = [(place, option) for place, option in _all_options(manual) if option.name == name]
    for place, option in found:
        _option(option, place)
    return bool(found)


def _all_options(manual: Manual) -> Iterator[tuple[str, Option]]:
    for section, options in manual.sections.items():
        yield from ((f"{section}.{option.name}", option) for option in options)
    for family, members in manual.families.items():
        for member in members:
            yield from ((f"{family}.{member.name}.{option.name}", option) for option in member.options)


def _section(manual: Manual, name: str) -> None:
    field = manual.fields.get(name)
    screen.heading(name)
    if field is not None:
        screen.say(field.help)
    if name in manual.families:
        screen.say()
        screen.pairs((member.name, member.summary) for member in manual.families[name])
    elif name in manual.sections:
        _options(manual.sections[name])
    elif field is not None:
        screen.say(f"It is: {field.type}; default {_plain(field.default)}.")


def _member(member: Member) -> None:
    screen.heading(f"{member.name} ({member.family})")
    screen.say(member.doc)
    _options(member.options)
    if member.family in IN_RUN_FILES:
        first = next((option for option in member.options if not option.required), None)
        inner = f"{{{member.name}: {{{first.name}: {_plain(first.default)}}}}}" if first else member.name
        screen.heading("in a run file")
        screen.say(f"  {member.family}: {inner}")


def _options(options: tuple[Option, ...]) -> None:
    if not options:
        screen.say()
        screen.say("It has no options.")
        return
    screen.heading("options")
    for option in options:
        screen.say(f"  {option.name}: {_kind(option)}")
        screen.say(f"      {option.help}", "dim")


def _option(option: Option, place: str) -> None:
    screen.heading(place)
    screen.say(option.help)
    screen.say(f"It is: {_kind(option)}.")


def _kind(option: Option) -> str:
    return f"{option.type}, required" if option.required else f"{option.type}; default {_plain(option.default)}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _unknown(manual: Manual, name: str) -> Exception:
    from tunesmith.core.problem import Problem, nearest

    known = {place for place, _ in _all_options(manual)} | {
        place.rpartition(".")[2] for place, _ in _all_options(manual)
    }
    known |= {*manual.fields, *manual.families}
    known |= {member.name for members in manual.families.values() for member in members}
    hint = nearest(name, known)
    if hint.startswith("Known:"):
        hint = "`tunesmith explain` without a name lists everything"
    return Problem(name, "there is no plug-in or option of this name", hint)
