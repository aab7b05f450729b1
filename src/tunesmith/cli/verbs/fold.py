"""Melt an adapter into plain weights."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli import imports, screen

EPILOG = """\
Examples:

  tunesmith fold runs/mine
  tunesmith fold runs/mine --output my-model --dtype bfloat16

The folded model is reloaded and its logits are compared with those of base
and adapter on real prompts; where they differ, nothing is kept and the
difference is told."""


class Base(StrEnum):
    """Which weights a base has that was held in few bits while training."""

    trained = "trained"
    original = "original"


class Dtype(StrEnum):
    """Number types that weights are saved in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def fold(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="A run folder, or a folder with a PEFT adapter.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The folder for the model; by default `folded` inside the run folder."),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="Number type of the weights that are written; auto keeps the base's.")
    ] = Dtype.auto,
    base: Annotated[
        Base,
        typer.Option(
            "--base",
            help="Where the base was held in few bits (nf4, int8): as it was trained, written out, or the original.",
        ),
    ] = Base.trained,
) -> None:
    """Fold an adapter into its base, prove that the result is equal, and save it as a plain model."""
    imports.models()
    from tunesmith.merge.fold import fold as melt

    screen.hush()
    done = melt(folder, output, dtype.value, hear=lambda text: screen.say(f"  {text}", "dim"), base=base.value)
    for line in done.lines:
        screen.say(line)
    screen.say()
    screen.say("It loads wherever transformers models load, and here with:")
    screen.say(f"  {screen.command('chat', done.folder)}", "cyan")
