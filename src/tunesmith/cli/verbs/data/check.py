"""Account for every row of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli import screen

if TYPE_CHECKING:
    from tunesmith.core.run import DataSpec

EPILOG = """\
Examples:

  tunesmith data check rows.jsonl
  tunesmith data check reviews.csv --column text=review --column label=stars
  tunesmith data check --run run.yaml

Exit status: 0 when every row can be used, 1 when some are rejected (the
report says which and why), 2 when a file cannot be read at all."""


def check(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]...", help="Files, folders, ids on a hub, or FILE/dataset_info.json:NAME."),
    ] = None,
    run: Annotated[Path | None, typer.Option("--run", metavar="RUN.yaml", help="Check the data of a run file.")] = None,
    format: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="How rows are read; by default it is found.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="PART=COLUMN", help="Which column plays which part of the format."),
    ] = None,
    rejects: Annotated[
        Path | None,
        typer.Option("--rejects", metavar="FILE", help="Where rejected rows go; by default NAME.rejects.jsonl here."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Read every row, say what can be used and what cannot and why, and list the rejected rows in a file."""
    from tunesmith.cli.progress import Counting
    from tunesmith.data.check import check as account

    specs, base = _specs(files or [], run, format, column or [])
    with Counting() as counting:
        report = account(
            specs, _rejects(rejects, specs, base), base, lambda done: counting.hear("reading rows", done, 0)
        )
    if as_json:
        print(json.dumps(report.plain(), ensure_ascii=False, indent=2))
    else:
        for line in report.lines(long=True):
            screen.say(line)
    lost = sum(source.lost for source in report.sources)
    if not as_json and not lost:
        screen.say("Every row can be used.", "green")
    raise typer.Exit(1 if lost else 0)


def _specs(files: list[str], run: Path | None, format: str | None, column: list[str]) -> tuple[list[DataSpec], Path]:
    from tunesmith.cli import runs
    from tunesmith.core.problem import Problem
    from tunesmith.core.run import DataSpec

    columns = dict(_pair(text) for text in column)
    specs = [DataSpec(path=file, format=format, columns=columns) for file in files]
    if run is None:
        if not specs:
            raise Problem("data check", "no file is given", "Give a file, or --run RUN.yaml")
        return specs, Path()
    if files or format or columns:
        raise Problem("--run", "the run file says what is read and how", "Leave files, --format and --column out")
    read, base = runs.read(run)
    return [*read.data, *read.validation.data], base


def _rejects(asked: Path | None, specs: list[DataSpec], base: Path) -> Path:
    """The file for rejected rows, which is none that is read: it is emptied at the start."""
    from tunesmith.core.problem import Problem

    file = asked or Path(f"{Path(specs[0].path).name.partition('.')[0] or 'rows'}.rejects.jsonl")
    if any(file.resolve() == (base / spec.path).resolve() for spec in specs):
        raise Problem(str(file), "is read, so it cannot take the rejected rows too", "Name another file with --rejects")
    return file


def _pair(text: str) -> tuple[str, str]:
    from tunesmith.core.problem import Problem

    part, equals, column = text.partition("=")
    if not equals or not part or not column:
        raise Problem(f"--column {text}", "is not of the form PART=COLUMN", "For example --column text=review")
    return part, column
