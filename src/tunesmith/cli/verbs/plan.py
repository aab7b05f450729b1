"""What a run will take, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli import imports, screen

EPILOG = """\
Examples:

  tunesmith plan run.yaml
  tunesmith plan run.yaml train.tokens_per_batch=8192

A run that cannot fit is refused with its figures and with what would make
it fit (exit status 2)."""


def plan(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run file to plan.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=VALUE]...", help="Options to set instead of what the file says."),
    ] = None,
) -> None:
    """Say how many steps and tokens, and how much memory, disk and time a run will take."""
    from tunesmith.cli import runs

    imports.models()
    run, base = runs.read(run_file, changes)
    from tunesmith.cli.progress import Display
    from tunesmith.train.plan import plan as work_out

    with Display() as display:
        made = work_out(run, base=base, hear=display.hear)
    for title, rows in made.sections.items():
        screen.heading(title)
        screen.pairs(rows)
    screen.say()
    screen.say("Start it with:")
    screen.say(f"  {screen.command('train', run_file, *(changes or ()))}", "cyan")
