"""The progress of a training run: a live bar on a terminal, a line now and then everywhere else.

Event ─▶ Display.hear ─▶ note · reading · data · start · step · validate · checkpoint · nonfinite · end
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from tunesmith.cli import screen
from tunesmith.core.events import Event

SMOOTHING = 0.9
"""How much of the average of loss and speed a step leaves as it was."""
PIPED_LINES = 10
"""About how many lines a run takes where there is no terminal."""
FIRST_READING = 10_000
"""Rows read before the first line about it is printed; the next come at twice the number."""


class Average:
    """An exponential average, corrected for its start."""

    def __init__(self, keep: float = SMOOTHING) -> None:
        self.keep = keep
        self._total = self._weight = 0.0

    def add(self, value: float) -> None:
        self._total = self.keep * self._total + (1 - self.keep) * value
        self._weight = self.keep * self._weight + (1 - self.keep)

    @property
    def value(self) -> float:
        return self._total / self._weight if self._weight else float("nan")


class Figures:
    """What is known of a run so far: how far, how fast, how good."""

    def __init__(self) -> None:
        self.total = 0
        self.step = 0
        self.validation: float | None = None
        self._goal = "loss"
        self._loss, self._seconds, self._tokens = Average(), Average(), Average()

    def take(self, event: Event) -> None:
        """Add a step to the averages."""
        self.step = event.step
        self._goal = _goal_of(event)
        self._loss.add(float(event.values[self._goal]))
        self._seconds.add(float(event.values["seconds"]))
        self._tokens.add(float(event.values["tokens"]))

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self._tokens.value / max(self._seconds.value, 1e-9)

    def parts(self) -> list[str]:
        """Loss, speed, time left and the last validation loss, as words."""
        left = self._seconds.value * max(0, self.total - self.step)
        words = [f"{self._goal} {screen.number(self._loss.value)}", f"{self.speed:,.0f} tokens/s"]
        words.append(f"{screen.duration(left)} left")
        if self.validation is not None:
            words.append(f"validation {screen.number(self.validation)}")
        return words


class Display:
    """Hears the events of a run and shows them; used as a context, so that the bar is put away at the end."""

    def __init__(self, title: str = "training") -> None:
        self.title = title
        self.figures = Figures()
        self.console = screen.console()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._reader: TaskID | None = None
        self._next_reading = FIRST_READING

    def __enter__(self) -> Self:
        screen.hush()
        if self.console.is_terminal:
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[told]}"),
                console=self.console,
                transient=True,
            )
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def hear(self, event: Event) -> None:
        """Show one event; kinds that are not known here are left to others, and the end is said by the verb."""
        show = {
            "note": self._note,
            "reading": self._reading,
            "data": self._data,
            "start": self._start,
            "step": self._step,
            "validate": self._validate,
            "checkpoint": self._checkpoint,
            "nonfinite": self._nonfinite,
        }.get(event.kind)
        if show is not None:
            show(event)

    def line(self, text: str, style: str | None = None) -> None:
        """Print a line above the bar."""
        self.console.print(screen.clean(text), style=style, soft_wrap=True)

    def _note(self, event: Event) -> None:
        self.line(f"  {event.values['text']}", "dim")

    def _reading(self, event: Event) -> None:
        done = int(event.values["done"])
        if self._progress is not None:
            if self._reader is None:
                self._reader = self._progress.add_task("reading rows", total=None, told="")
            self._progress.update(self._reader, told=f"{done:,}")
        elif done >= self._next_reading:
            self.line(f"  {done:,} rows read")
            while self._next_reading <= done:
                self._next_reading *= 2

    def _stop_reading(self) -> None:
        if self._progress is not None and self._reader is not None:
            self._progress.remove_task(self._reader)
            self._reader = None

    def _data(self, event: Event) -> None:
        self._stop_reading()
        for text in event.values["lines"]:
            self.line(f"  {text}")

    def _start(self, event: Event) -> None:
        self._stop_reading()
        self.figures.total, self.figures.step = int(event.values["total_steps"]), event.step
        self.line(f"  {_opening(event)}")
        if self._progress is not None:
            self._task = self._progress.add_task(self.title, total=self.figures.total, completed=event.step, told="")

    def _step(self, event: Event) -> None:
        self.figures.take(event)
        told, total = "  ".join(self.figures.parts()), self.figures.total
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=event.step, told=f"{event.step}/{total}  {told}")
        elif self._line_is_due(event.step):
            self.line(f"  step {event.step:>{len(str(total))}} of {total}  {told}")

    def _line_is_due(self, step: int) -> bool:
        total = max(1, self.figures.total)
        return step >= total or step * PIPED_LINES // total > (step - 1) * PIPED_LINES // total

    def _validate(self, event: Event) -> None:
        values = event.values
        goal = _goal_of(event)
        word = "highest" if goal == "reward" else "lowest"
        self.figures.validation = float(values[goal])
        shown = {name: value for name, value in values.items() if name != goal and _is_figure(name, value)}
        said = [f"  step {event.step}: validation {goal} {screen.number(self.figures.validation)}"]
        said += [f"{name} {screen.number(float(value))}" for name, value in shown.items()]
        best = [f"({word} so far)"] if values.get("best_step") == event.step else []
        self.line("  ".join([*said, *best]))

    def _checkpoint(self, event: Event) -> None:
        self.line(f"  step {event.step}: checkpoint {Path(event.values['path']).name}", "dim")

    def _nonfinite(self, event: Event) -> None:
        values = event.values
        then = {"stop": "the run stops", "skip": "the step is skipped", "rollback": "back to the last checkpoint"}
        what = f"{values['what']}; {then.get(values['then'], values['then'])}. Its rows: {values['rows']}"
        self.line(f"  step {event.step + 1}: {what}", "bold red")


_TOLD = ("loss", "best", "best_step")


def _goal_of(event: Event) -> str:
    """By which figure a step or validation is told: the reward, where answers earn one, else the loss."""
    return "reward" if "reward" in event.values else "loss"


def _is_figure(name: str, value: object) -> bool:
    return name not in _TOLD and isinstance(value, int | float) and not isinstance(value, bool)


def _opening(event: Event) -> str:
    values, total = event.values, event.values["total_steps"]
    start = f"from step {event.step:,} of {total:,}" if event.step else f"{total:,} steps"
    size = f"about {values['tokens_per_step']:,.0f} tokens a step" if values.get("tokens_per_step") else ""
    share = f"{values['trainable']:,} of {values['all']:,} weights learn" if values.get("all") else ""
    return ", ".join(part for part in (start, size, share) if part)


class Counting:
    """Shows how far long parts are, each by its name; loads nothing heavy, so `data check` can use it too."""

    def __init__(self) -> None:
        self.console = screen.console()
        self._tasks: dict[str, TaskID] = {}
        self._said: set[str] = set()
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            bar = (TextColumn("  {task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[told]}"))
            self._progress = Progress(*bar, console=self.console, transient=True)
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def hear(self, what: str, done: int, total: int) -> None:
        """Told that `done` of `total` are done; 0 where the total is not known."""
        told = f"{done:,} of {total:,}" if total else f"{done:,}"
        if self._progress is not None:
            if what not in self._tasks:
                self._tasks[what] = self._progress.add_task(what, total=total or None, told="")
            self._progress.update(self._tasks[what], completed=done, total=total or None, told=told)
        elif total and done >= total and what not in self._said:
            self._said.add(what)
            self.console.print(f"  {what}: {told}", soft_wrap=True)
