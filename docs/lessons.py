"""The four lessons of "Reading the curves" in both tutorials: trained for real, drawn, and put into the pages.

    python docs/lessons.py            train all four, in minutes, and write the pages
    python docs/lessons.py --pages    only the pages, from the runs in runs/lessons

    runs/lesson-NAME.yaml ─▶ tunesmith train ─▶ events ─┬─▶ images/lesson-NAME.png   the run's own plot
                                                        ├─▶ images/lessons.png       all four on one scale
                                                        └─▶ tutorials, where they say <!-- lessons: NAME -->, or table

The runs need nothing but the package: they are made in a folder with the shipped examples, as a reader's are. A base
that learns differently may need other settings, so the pages are left alone if a run does not show its lesson.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from refresh import DOCS, ROOT, TUTORIALS, Session, Step, fill

from tunesmith import builtin
from tunesmith.core.events import Event, read_events
from tunesmith.train.listeners.plot import course

HOME = ROOT / "runs" / "lessons"
LESSONS = {
    "good": {"en": "a good run", "zh": "正常"},
    "overfitted": {"en": "overfitted", "zh": "过拟合"},
    "high": {"en": "learning rate too high", "zh": "学习率太大"},
    "low": {"en": "learning rate too low", "zh": "学习率太小"},
}
HEADS = {
    "en": ("run", "training loss at the end", "validation loss at the start", "lowest", "at the end"),
    "zh": ("运行", "结束时的训练损失", "开始时的验证损失", "最低", "结束时"),
}
ROOM = 1.35
"""The scale ends at this multiple of the loss at the start; what goes beyond is seen in the run's own picture."""


@dataclass(frozen=True)
class Curve:
    """What a run's events come to. trained: mean training loss of the last tenth; measured: validation loss by step."""

    trained: float
    measured: dict[int, float]

    @classmethod
    def of(cls, events: list[Event]) -> Curve:
        losses = [event.values["loss"] for event in events if event.kind == "step"]
        last = losses[-max(1, len(losses) // 10) :]
        measured = {event.step: event.values["loss"] for event in events if event.kind == "validate"}
        return cls(sum(last) / len(last), measured)

    @property
    def start(self) -> float:
        return self.measured[min(self.measured)]

    @property
    def end(self) -> float:
        return self.measured[max(self.measured)]

    @property
    def lowest(self) -> int:
        """The step of the lowest validation loss."""
        return min(self.measured, key=self.measured.__getitem__)


def main() -> None:
    """Train the lessons, and write the pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pages", action="store_true", help="only write the pages")
    if not parser.parse_args().pages:
        make()
    curves = {name: Curve.of(events_of(name)) for name in LESSONS}
    if untold := list(not_shown(curves)):
        raise SystemExit("\n".join(untold))
    draw()
    fill(TUTORIALS, "lessons", lambda name, tongue: block(name, curves, tongue))


def make() -> None:
    """Train the four runs beside the shipped examples, and keep their folders and what they printed."""
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="tunesmith-docs-") as folder:
        session = Session(Path(folder))
        shutil.copytree(builtin.example("reviews").parent, session.folder / "examples")
        for name in LESSONS:
            shutil.copyfile(DOCS / "runs" / f"lesson-{name}.yaml", session.folder / f"lesson-{name}.yaml")
            told = session.do(Step(f"tunesmith train lesson-{name}.yaml"))
            kept = HOME / name
            (kept / "plots").mkdir(parents=True)
            for part in ("events.jsonl", "plots/loss.png"):
                shutil.copyfile(session.folder / "runs" / f"lesson-{name}" / part, kept / part)
            (kept / "told.txt").write_text(told, "utf-8")


def events_of(name: str) -> list[Event]:
    """The events of a lesson's run."""
    return list(read_events(HOME / name / "events.jsonl"))


def not_shown(curves: dict[str, Curve]) -> Iterator[str]:
    """A sentence for each run that does not show its lesson."""
    good, overfitted, high, low = (curves[name] for name in LESSONS)
    fall = good.start - good.end
    if fall < 0.1 * good.start or good.end - good.measured[good.lowest] > 0.1 * fall:
        yield "good: the validation loss does not fall and stay down"
    if overfitted.end < overfitted.measured[overfitted.lowest] + 0.25 * fall or overfitted.trained > good.trained:
        yield "overfitted: the validation loss does not rise while the training loss falls"
    if high.end < high.start:
        yield "high: the validation loss is no higher at the end than at the start"
    if not 0 <= low.start - low.end < 0.2 * fall:
        yield "low: the validation loss does not stay near its start"


def draw() -> None:
    """The picture of each run, and all four on one scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    top = ROOM * Curve.of(events_of("good")).start
    for axes, (name, title) in zip(grid.flat, LESSONS.items(), strict=True):
        course(axes, events_of(name))
        axes.set_title(title["en"], loc="left")
        axes.set_ylim(0, top)
        shutil.copyfile(HOME / name / "plots" / "loss.png", DOCS / "images" / f"lesson-{name}.png")
    figure.savefig(DOCS / "images" / "lessons.png", format="png", dpi=110)


def block(name: str, curves: dict[str, Curve], tongue: str) -> str:
    """What stands between a page's marks: the table, or a run's picture and what it said at its end."""
    if name == "table":
        return "\n".join(table(curves, tongue))
    told = (HOME / name / "told.txt").read_text("utf-8")
    said = "\n".join(["```console", f"$ tunesmith train lesson-{name}.yaml", *ending(told), "```"])
    return f"![lesson-{name}](../images/lesson-{name}.png)\n\n{said}"


def ending(told: str) -> Iterator[str]:
    """The last lines of a run, from its last measurement to its lowest one."""
    lines = told.splitlines()
    last = max(place for place, line in enumerate(lines) if ": validation loss " in line)
    yield "  …"
    for line in lines[last:]:
        yield line.rstrip()
        if line.startswith("  lowest validation loss"):
            return


def table(curves: dict[str, Curve], tongue: str) -> Iterator[str]:
    """The figures of all four runs."""
    yield "| " + " | ".join(HEADS[tongue]) + " |"
    yield "| --- |" + " ---: |" * (len(HEADS[tongue]) - 1)
    for name, curve in curves.items():
        figures = (curve.trained, curve.start, curve.measured[curve.lowest], curve.end)
        yield f"| {LESSONS[name][tongue]} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |"


if __name__ == "__main__":
    main()
