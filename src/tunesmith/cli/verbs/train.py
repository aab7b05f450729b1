"""Train what a run file says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli import imports, screen

EPILOG = """\
Examples:

  tunesmith train run.yaml
  tunesmith train run.yaml train.epochs=1 method.lora.rank=32

Paths in a run file start from the folder that the command is given in, as
all paths of a command do. Ctrl-C gives up the step under way, saves a
checkpoint of the one before and ends; `tunesmith resume FOLDER` goes on from
there. `tunesmith plan run.yaml` says beforehand what a run will take.
`tunesmith explain train` lists what can be set."""


def train(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run file; `tunesmith new` writes one.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=VALUE]...", help="Options to set instead of what the file says, for this run."),
    ] = None,
) -> None:
    """Train a model as a run file says, and keep everything about it in a run folder."""
    from tunesmith.cli import runs

    imports.models()
    run, base = runs.read(run_file, changes)
    screen.say(f"Training {run_file}", "bold")
    from tunesmith.cli.closing import close
    from tunesmith.cli.progress import Display
    from tunesmith.train.verb import train as start

    with Display() as display:
        result = start(run, name=run_file.stem, base=base, hear=display.hear)
    close(result)
