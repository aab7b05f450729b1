"""Several adapters into one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tunesmith.cli import screen

EPILOG = """\
Examples:

  tunesmith adapters combine runs/a:0.5 runs/b:0.5 -o both
  tunesmith adapters combine runs/a runs/b --rank 16 -o both
  tunesmith adapters combine runs/a runs/b --method ties density=0.4 -o both

The sum of LoRA adapters is exact: factors side by side, of the ranks' sum.
With --rank the nearest change of that rank is kept. Methods such as ties
and dare_linear work on what the adapters change, never on their factors.
How far the result is from the true weighted sum is measured and told."""


def combine(
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="FOLDER[:WEIGHT]...",
            help="Run or adapter folders with their weights, 1 by default; NAME=VALUE sets an option of the method.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for the adapter.")],
    method: Annotated[str, typer.Option("--method", help="sum, or a merge method over changes.")] = "sum",
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="Rank of the result; by default what the exact sum needs.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="What methods that draw at random draw by.")] = 0,
) -> None:
    """Make one LoRA adapter of several over the same base, and measure it against the true sum."""
    from tunesmith.cli.progress import Counting
    from tunesmith.core.yaml_file import assign
    from tunesmith.merge.combine import Part
    from tunesmith.merge.combine import combine as join

    options: dict[str, Any] = {}
    for change in (text for text in adapters if "=" in text):
        assign(options, change)
    parts = [Part.of(text) for text in adapters if "=" not in text]
    screen.hush()
    count = iter(range(1, 1 << 30))
    with Counting() as counting:
        done = join(
            parts,
            output,
            method=method,
            rank=rank,
            options=options,
            seed=seed,
            hear=lambda name: counting.hear("weights", next(count), 0),
        )
    for line in done.lines:
        screen.say(line)
    screen.say()
    screen.say("Use it with:")
    screen.say(f"  {screen.command('chat', output)}", "cyan")
