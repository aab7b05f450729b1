"""Go on with a run that was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli import imports, screen

EPILOG = """\
Examples:

  tunesmith resume runs/mine-20250101-120000
  tunesmith resume runs/mine-20250101-120000 --accept data

The run goes on bit for bit as if it had never been stopped. Where a file
that it reads has changed, it stops and names what changed; --accept NAME
takes the change."""


def resume(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The run folder that `tunesmith train` printed.")],
    accept: Annotated[
        list[str] | None,
        typer.Option("--accept", metavar="NAME", help="Take a changed input, by the name that the refusal gave it."),
    ] = None,
) -> None:
    """Go on with a run from its newest good checkpoint."""
    from tunesmith.core.rundir import open_run

    open_run(folder)
    screen.say(f"Resuming {folder}", "bold")
    imports.models()
    from tunesmith.cli.closing import close
    from tunesmith.cli.progress import Display
    from tunesmith.train.verb import resume as go_on

    with Display() as display:
        result = go_on(folder, accept=tuple(accept or ()), hear=display.hear)
    close(result)
