"""Rounds: every side in turn, again and again, so that what else the machine does hits all sides alike."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence

from bench.side import Outcome, Side, run
from bench.table import Told

PATHS = re.compile(r"(?<!\w)/[^\s'\":,]+")
"""Left out of what a fault says: they are those of one machine."""
FAR = 1.5
"""A side of another program that takes so many times what the best one takes is not measured again."""


def alternate(
    sides: Sequence[Side],
    repeats: int,
    measure: str = "cpu",
    threads: int = 1,
    check: Callable[[list[Told]], None] = lambda told: None,
) -> list[Told]:
    """Run sides in turn; every other round goes backwards.

    In the first round all run. Later ones leave out what cannot run here, and other programs' settings that are far
    from their best one. check: called after the first round with what was found; it raises where sides did not do the
    same work.

    Raises:
        RuntimeError: a side of our own failed.
    """
    told = {side.name: Told(side.name, side.kind) for side in sides}
    for number in range(repeats):
        for side in sides if number % 2 == 0 else reversed(sides):
            entry = told[side.name]
            entry.rounds.append(None)
            if not entry.fault and (number == 0 or not _far(entry, list(told.values()), measure)):
                _once(side, entry, threads)
        if number == 0:
            check(list(told.values()))
    return list(told.values())


def _once(side: Side, entry: Told, threads: int) -> None:
    try:
        found: Outcome = run(side, threads)
    except RuntimeError as error:
        if side.kind in ("ours", "plain"):
            raise
        entry.fault = f"did not run: {PATHS.sub('', str(error).strip().splitlines()[-1])}"
        print(f"{error}\n", file=sys.stderr, flush=True)
        return
    entry.rounds[-1], entry.versions = found.figures, found.versions
    shown = ", ".join(f"{name} {value:.6g}" for name, value in found.figures.items() if isinstance(value, (int, float)))
    print(f"  {side.name}: {shown}", file=sys.stderr, flush=True)


def _far(entry: Told, all_told: Sequence[Told], measure: str) -> bool:
    """Whether another program's side is far from the best of them; for figures of which less is better."""
    mine = entry.median(measure)
    best = min((v for t in all_told if t.kind == "peer" and (v := t.median(measure)) is not None), default=None)
    return entry.kind in ("peer", "other") and mine is not None and best is not None and mine > FAR * best
