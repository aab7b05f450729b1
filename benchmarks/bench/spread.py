"""tunesmith's side of the benchmark of threads: the step as `bench.ours` takes it, and how its work was spread.

Threads that wait are soon asleep, so a thread's CPU time is its work. What the busiest thread does more than its share
was done while the others waited: whatever the machine does beside, the step cannot be faster than by all threads' work
over the busiest one's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import ours


class Watch(ours.Watch):
    """Also takes the CPU time of each thread from the start of the run to the end of its step."""

    last: Watch

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, int] = {}
        self.after: dict[str, int] = {}
        Watch.last = self

    def hear(self, event: Any) -> None:
        """Take note of an event of the run."""
        super().hear(event)
        if event.kind == "start":
            self.before = threads()
        elif event.kind == "step":
            self.after = threads()


def train(settings: dict[str, Any]) -> dict[str, Any]:
    """As `bench.ours:train`; `bound`: how many times as fast as one thread these threads could be.

    settings: `spin` beside: whether threads wait as OpenMP has them wait by itself, not as the command has it.
    """
    from tunesmith.cli.__main__ import wait_shortly

    if not settings["spin"]:
        wait_shortly()
    ours.Watch = Watch  # type: ignore[misc]
    figures = ours.train(settings)
    watch = Watch.last
    work = [took - watch.before.get(thread, 0) for thread, took in watch.after.items()]
    return {**figures, "bound": sum(work) / max(work)}


def threads() -> dict[str, int]:
    """CPU time of each thread of this process, in ns."""
    found = {task.name: task / "schedstat" for task in Path("/proc/self/task").iterdir()}
    return {name: int(file.read_text().split()[0]) for name, file in found.items()}
