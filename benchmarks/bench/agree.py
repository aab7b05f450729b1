"""Whether sides did the same work: a faster wrong answer does not count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.table import Told

Within = Mapping[str, float]
"""By how much a figure may differ, relative to its size; figures that are not named may be anything."""


def disagreements(told: Sequence[Told], within: Within, loose: Mapping[str, Within]) -> list[str]:
    """What differs from the first side of our own that ran, in words.

    loose: other bounds for sides that differ by construction, by name.
    """
    ours = next(side for side in told if side.kind == "ours" and side.rounds[0])
    wanted = ours.rounds[0] or {}
    found: list[str] = []
    for side in told:
        figures = side.rounds[0]
        for name, least in loose.get(side.name, within).items() if figures else ():
            value, right = (figures or {}).get(name), wanted.get(name)
            if value is None or right is None or abs(value - right) > least * abs(right):
                found.append(f"{side.name}: {name} is {value}, and {right} for {ours.name}")
    return found


def refuse(told: Sequence[Told], within: Within, loose: Mapping[str, Within]) -> None:
    """Stop where sides did not do the same work.

    Raises:
        SystemExit: what differs.
    """
    if found := disagreements(told, within, loose):
        raise SystemExit("not the same work:\n  " + "\n  ".join(found))
