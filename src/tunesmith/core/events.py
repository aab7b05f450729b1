"""Events: what a run says while it works; progress bars, plots and trackers are listeners or readers of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tunesmith.core.problem import Problem


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened: its kind, the step it belongs to, its figures.

    kinds: `reading`, `data`, `start`, `step`, `validate`, `checkpoint`, `nonfinite`, `note`, `end`.
    """

    kind: str
    step: int = 0
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    time: float = field(default_factory=time.time)

    def line(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=True)


class Listens(Protocol):
    """Whoever is told of events."""

    def hear(self, event: Event) -> None: ...


def read_events(path: Path) -> Iterator[Event]:
    """The events of a run, in order; a last line cut short by a crash is left out.

    Raises:
        Problem: a line is damaged.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield Event(**json.loads(line))
            except (ValueError, TypeError, RecursionError) as error:
                raise Problem(f"{path}:{number}", f"is no event ({error})", "Take the damaged line out") from error
