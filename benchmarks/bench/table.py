"""From rounds of figures to a group with medians and ratios, to JSON, and from JSON to a table in Markdown.

A group is what one table shows: sides on the same work. Its base is the side that ratios refer to, the best of the
other programs unless one is named. The ratio of a figure is the median over the rounds in which both sides ran of
one side's figure over the base's, so that a busy moment of the machine does not count for one side alone.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal

from bench.machine import describe

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ROOT / "docs" / "benchmarks"
Tongue = Literal["en", "zh"]
Round = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of a table: the median of a figure, or (`ratio`) its ratio to the base, in both languages.

    scale: what the figure is multiplied with; digits: behind the point.
    """

    figure: str
    en: str
    zh: str
    digits: int = 1
    ratio: bool = False
    scale: float = 1.0


@dataclass
class Told:
    """A side in a group: its name, its kind (as `Side` has it), its figures round by round, its versions.

    rounds: one entry a round of the group, None where the side did not run. fault: why it could not run at all.
    """

    name: str
    kind: str
    rounds: list[dict[str, Any] | None] = field(default_factory=list[dict[str, Any] | None])
    versions: dict[str, str] = field(default_factory=dict[str, str])
    fault: str = ""

    def median(self, figure: str) -> float | None:
        """The median of a figure; None where no round has it."""
        found = [told[figure] for told in self.rounds if told and told.get(figure) is not None]
        return statistics.median(found) if found else None

    def ratio(self, figure: str, base: Told) -> float | None:
        """The median ratio of a figure to the base's over the rounds that both have, or of the medians if none."""
        pairs = [
            mine[figure] / theirs[figure]
            for mine, theirs in zip(self.rounds, base.rounds, strict=False)
            if mine and theirs and mine.get(figure) is not None and theirs.get(figure)
        ]
        if pairs:
            return statistics.median(pairs)
        mine, theirs = self.median(figure), base.median(figure)
        return mine / theirs if mine is not None and theirs else None


@dataclass
class Group:
    """Sides on the same work.

    en, zh: a sentence on the work, above the table; measure: the figure that decides which side is best; more: whether
    more of it is better; base: the side that ratios refer to, by default the best of the other programs; facts: what
    the work amounts to and the machine's limits, as numbers by name; across: where sides are the same work in several
    sizes, the figure that holds the size; the plot is then of `cost` over it.
    """

    name: str
    en: str
    zh: str
    columns: list[Column]
    sides: list[Told]
    measure: str = "cpu"
    more: bool = False
    base: str = ""
    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    command: str = ""
    across: str = ""
    day: str = field(default_factory=lambda: date.today().isoformat())
    machine: dict[str, Any] = field(default_factory=describe)

    def side(self, name: str) -> Told:
        return next(side for side in self.sides if side.name == name)

    @property
    def reference(self) -> Told | None:
        """The side that ratios refer to."""
        return self.side(self.base) if self.base else self.best("peer")

    def best(self, kind: str) -> Told | None:
        """The best side of a kind."""
        found = [(value, side) for side in self.sides if side.kind == kind and (value := side.median(self.measure))]
        best = max if self.more else min
        return best(found, key=lambda pair: pair[0])[1] if found else None

    def plain(self) -> dict[str, Any]:
        """As it is written."""
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Group:
        """A group as it was written."""
        parts = {"columns": [Column(**c) for c in plain["columns"]], "sides": [Told(**s) for s in plain["sides"]]}
        return cls(**{**plain, **parts})


def read(name: str, folder: Path = FIGURES) -> list[Group]:
    """The groups of a benchmark, as they were last measured; none if it never was."""
    file = folder / f"{name}.json"
    return [Group.of(plain) for plain in json.loads(file.read_text("utf-8"))] if file.is_file() else []


def write(name: str, groups: Sequence[Group], folder: Path = FIGURES) -> Path:
    """Put groups into a benchmark's file; groups of other names that it holds already stay, in their place."""
    known = {group.name: group for group in read(name, folder)}
    known |= {group.name: group for group in groups}
    file = folder / f"{name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps([group.plain() for group in known.values()], indent=1, ensure_ascii=False)
    file.write_text(text + "\n", "utf-8")
    return file


HEAD: dict[Tongue, str] = {"en": "program", "zh": "程序"}
SIZE: dict[Tongue, str] = {"en": "size", "zh": "规模"}


def markdown(group: Group, tongue: Tongue = "en") -> str:
    """A group as a table: a row for each side, its medians and its ratios."""
    first = SIZE if group.across else HEAD
    heads = [first[tongue], *(column.en if tongue == "en" else column.zh for column in group.columns)]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for side in group.sides:
        cells = [side.fault] + [""] * (len(group.columns) - 1) if side.fault else _cells(group, side)
        lines.append(f"| {' | '.join([_name(group, side), *cells])} |")
    return "\n".join(lines)


def _name(group: Group, side: Told) -> str:
    """A side's name; our own stand out among others."""
    alone = all(each.kind in ("ours", "plain") for each in group.sides)
    return side.name if alone or side.kind not in ("ours", "plain") else f"**{side.name}**"


def _cells(group: Group, side: Told) -> list[str]:
    base = group.reference
    return [_cell(column, side, base) for column in group.columns]


def _cell(column: Column, side: Told, base: Told | None) -> str:
    if column.ratio and base is None:
        return ""
    value = side.ratio(column.figure, base) if column.ratio and base else side.median(column.figure)
    return "" if value is None else f"{value * column.scale:,.{column.digits}f}"


def about(group: Group, tongue: Tongue = "en") -> str:
    """Date, machine and rounds of a group, and the versions of each program, in a line."""
    machine = group.machine
    rounds = max((len(side.rounds) for side in group.sides), default=0)
    where, load = f"{group.day}, {machine['processor']}, {machine['cores']}", machine.get("load")
    if tongue == "zh":
        busy = "" if load is None else f"，结束时负载 {load}"
        return f"{where} 核{busy}，轮数 {rounds}。{_versions(group)}"
    busy = "" if load is None else f", load {load} at the end"
    return f"{where} cores{busy}, rounds: {rounds}. {_versions(group)}"


def _versions(group: Group) -> str:
    """What each set of programs that share an environment stands on."""
    programs: dict[str, dict[str, None]] = {}
    for side in group.sides:
        told = ", ".join(f"{name} {version}" for name, version in sorted(side.versions.items()))
        programs.setdefault(told, {})[side.name.partition(",")[0]] = None
    if len(programs) == 1:
        return next(iter(programs))
    return "; ".join(f"{', '.join(names)}: {told}" for told, names in programs.items() if told)
