"""An adapter out of two models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli import screen

EPILOG = """\
Examples:

  tunesmith adapters extract my-model Qwen/Qwen3-0.6B -o change
  tunesmith adapters extract runs/full builtin:seedling --rank 32 -o change

The change of each matrix is replaced by the nearest one of the rank, and how
much is lost is told, in all and where it is most. What an adapter cannot
hold, such as embeddings that moved, is counted."""


def extract(
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The tuned model: a run, a folder, or an id.")],
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model that it was tuned from.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for the adapter.")],
    rank: Annotated[int, typer.Option("--rank", min=1, help="Rank of the adapter.")] = 16,
    targets: Annotated[
        str | None, typer.Option("--targets", help="Layers by the end of their names, with commas; by default all.")
    ] = None,
) -> None:
    """Make a LoRA adapter of what a tuned model changed in its base, and say what is lost."""
    from tunesmith.cli.progress import Counting
    from tunesmith.merge.extract import extract as take

    names = tuple(part.strip() for part in targets.split(",")) if targets else ()
    screen.hush()
    count = iter(range(1, 1 << 30))
    with Counting() as counting:
        done = take(
            tuned, base, output, rank=rank, targets=names, hear=lambda name: counting.hear("weights", next(count), 0)
        )
    for line in done.lines:
        screen.say(line)
    screen.say()
    screen.say("Use it with:")
    screen.say(f"  {screen.command('chat', output)}", "cyan")
