"""Names that people know and that stand for several choices of a run.

    method: qlora            ─▶  method: lora            model: {quantize: nf4}
    method: {qlora: {...}}   ─▶  method: {lora: {...}}   model: {quantize: nf4}

A run file may use them anywhere; they are written out before anything else reads the run, and that is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from tunesmith.core.problem import Problem


@dataclass(frozen=True, slots=True)
class Alias:
    """What a name stands for. plug: the family's real member; model: options of `model` that go with it."""

    plug: str
    model: Mapping[str, str]
    help: str

    def told(self, family: str, name: str) -> str:
        """What it expands to, in words."""
        parts = [f"{family}: {self.plug}", *(f"model.{option}: {value}" for option, value in self.model.items())]
        return f"{family} {name} stands for {' and '.join(parts)}"


ALIASES: dict[str, dict[str, Alias]] = {
    "method": {
        "qlora": Alias(
            "lora",
            {"quantize": "nf4"},
            "LoRA on a base that is held in 4 bits (QLoRA, arXiv:2305.14314). It has the options of lora.",
        ),
    },
}
"""By family, the names that stand for something else."""


def expand(run: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A run as plain data with its aliases written out, and what each stood for.

    Raises:
        Problem: the run also says the opposite of what an alias stands for.
    """
    out, told = dict(run), list[str]()
    for family, aliases in ALIASES.items():
        name, options = _named(out.get(family))
        if name is None or name not in aliases:
            continue
        alias = aliases[name]
        out[family] = {alias.plug: options}
        out["model"] = _model(out.get("model"), alias, family, name)
        told.append(alias.told(family, name))
    return out, told


def _named(value: Any) -> tuple[str | None, Any]:
    """The member that a value names, and its options."""
    if isinstance(value, str):
        return value, None
    if isinstance(value, Mapping):
        entries = cast("Mapping[Any, Any]", value)
        if len(entries) == 1:
            name, options = next(iter(entries.items()))
            return str(name), options
    return None, None


def _model(value: Any, alias: Alias, family: str, name: str) -> Any:
    """The run's `model` with the options that an alias brings; of a kind that is none, it is left to be refused."""
    if isinstance(value, str):
        value = {"path": value}
    if not isinstance(value, Mapping):
        return value
    said = dict(cast("Mapping[str, Any]", value))
    for option, wanted in alias.model.items():
        if said.get(option, "auto") not in ("auto", wanted):
            raise Problem(
                f"model.{option}",
                f"is {said[option]}, and {alias.told(family, name)}",
                f"Leave model.{option} out, or write {family}: {alias.plug} in place of {name}",
            )
        said[option] = wanted
    return said
