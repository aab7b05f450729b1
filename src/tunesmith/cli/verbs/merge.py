"""Merge models into one, without training."""

from __future__ import annotations

import gc
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli import screen
from tunesmith.core.problem import Problem

EPILOG = """\
Examples:

  tunesmith merge recipe.yaml merged --plan
  tunesmith merge recipe.yaml merged
  tunesmith merge recipe.yaml merged --shard-size 2GB --proof files

A recipe is mergekit's YAML. No model is ever whole in memory; the folder
appears when it is complete and proven. A merge that was stopped goes on
where it was when it is started again. `tunesmith explain merge` lists the
methods. A recipe with experts (mergekit-moe's YAML) makes a mixture of them."""


class Proofs(StrEnum):
    """What is checked at the end."""

    full = "full"
    files = "files"


def merge(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe in mergekit's YAML.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The folder for the merged model; it must not exist.")],
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what is read and written, and what disk and memory it takes.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="What random pruning follows from.")] = 0,
    threads: Annotated[int, typer.Option("--threads", min=0, help="Threads at work; 0 takes every core.")] = 0,
    shard_size: Annotated[
        str, typer.Option("--shard-size", help="Largest file of the result, as 500MB or 4GB.")
    ] = "4GB",
    proof: Annotated[
        Proofs,
        typer.Option("--proof", help="full loads the result and computes logits; files reads its files back only."),
    ] = Proofs.full,
) -> None:
    """Merge models by a recipe, tensor by tensor: soups, SLERP, TIES, DARE and more, stacks of layers, experts."""
    # The methods' dot products are small: threads of the linear algebra library would only wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Libraries make objects by the hundred thousand and hardly a cycle: to look for some took a tenth of a short merge.
    gc.set_threshold(100_000)
    from tunesmith.cli.progress import Counting
    from tunesmith.merge.verb import How
    from tunesmith.merge.verb import merge as melt
    from tunesmith.merge.verb import plan as look

    how = How(seed, threads, _bytes(shard_size), proof.value)
    if plan:
        for each in look(recipe, output, how):
            screen.pairs(each.lines)
            screen.say()
        return
    with Counting() as counting:
        done = melt(recipe, output, how, counting.hear)
    kept = [f"kept from an earlier start: {', '.join(done.kept)}"] if done.kept else []
    for line in (*kept, *done.proof.lines, *done.notes):
        screen.say(line)
    screen.say(f"merged model: {done.folder}")
    screen.say()
    screen.say("It loads wherever transformers models load, and here with:")
    screen.say(f"  {screen.command('chat', done.folder)}", "cyan")


SIZES = {"KB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}


def _bytes(text: str) -> int:
    number, unit = text.strip()[:-2], text.strip()[-2:].upper()
    if unit not in SIZES or not number.strip().isdigit() or not int(number):
        raise Problem("--shard-size", f"{text!r} is no size", "Write a number with KB, MB or GB, as 500MB")
    return int(number) * SIZES[unit]
