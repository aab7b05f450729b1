"""Measure what a model can do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli import imports, screen

if TYPE_CHECKING:
    from tunesmith.evaluate.results import Results
    from tunesmith.evaluate.settings import Settings

EPILOG = """\
Examples:

  tunesmith evaluate runs/mine
  tunesmith evaluate runs/mine --data test.jsonl --generate 50
  tunesmith evaluate Qwen/Qwen3-0.6B --data rows.jsonl --prompt "Good? {text}"
  tunesmith evaluate merged --beside parent-1 --beside parent-2 -d rows.jsonl
  tunesmith evaluate runs/mine --generate 50 sampling.max_tokens=64

Without --data, a run is measured on the rows that it set aside. Every
figure comes with the interval that holds it in 95 of 100 cases. Labelled
rows are measured beside the majority class and a linear model of n-grams."""


def evaluate(
    target: Annotated[
        str, typer.Argument(metavar="FOLDER|MODEL", help="A run folder, an adapter, a model folder, or a model's id.")
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=VALUE]...", help="Further settings, such as sampling.max_tokens=64 or seed=1."),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", "-d", help="Rows to measure on; by default those the run set aside.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", help="What is asked about labelled rows, with {text}; by default as in training."),
    ] = None,
    generate: Annotated[
        int, typer.Option("--generate", min=0, help="Let the model write so many answers, and score them.")
    ] = 0,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", help="What written answers are scored by: a name, or your own FILE.py."),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option("--beside", help="Another run, adapter or model, measured on the same rows as a further column."),
    ] = None,
    max_rows: Annotated[int, typer.Option("--max-rows", min=1, help="Measure at most so many rows of --data.")] = 500,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder for results; by default in the run folder.")
    ] = None,
) -> None:
    """Measure a run or a model: perplexity, accuracy, F1, exact match and more, base against tuned."""
    from tunesmith.core.run import DataSpec

    specs = [DataSpec(path=path, prompt=prompt) for path in data or ()]
    value: dict[str, Any] = {"generate": generate, "max_rows": max_rows, "beside": beside or []}
    settings = _settings(value | ({"metrics": [_metric(name) for name in metric]} if metric else {}), changes or [])
    imports.models()
    from tunesmith.cli.progress import Counting
    from tunesmith.evaluate.verb import evaluate as measure

    screen.say(f"Evaluating {target}", "bold")
    screen.hush()
    with Counting() as counting:
        results = measure(target, specs or None, settings, listen=counting.hear)
    show(results)
    files = results.save(output or _folder(target))
    screen.say()
    screen.pairs(zip(("results", "report"), map(str, files), strict=True))


def show(results: Results) -> None:
    """Print the table of results and what it comes to."""
    head, *rows = results.lines()
    screen.say()
    screen.table(head, rows, numbers=range(1, len(head) - 1))
    for line in (*results.findings, *results.notes):
        screen.say(line)


def _settings(value: dict[str, Any], changes: list[str]) -> Settings:
    from tunesmith.core.options import parse
    from tunesmith.core.yaml_file import assign
    from tunesmith.evaluate.settings import Settings

    for change in changes:
        assign(value, change)
    return parse(Settings, value, "evaluate")


def _metric(name: str) -> str | dict[str, Any]:
    """A metric by its name, or the function `score` of a Python file."""
    return {"python": {"path": name}} if name.endswith(".py") else name


def _folder(target: str) -> Path:
    """The run's own place for results, or a folder of the model's name under `evaluation`."""
    from tunesmith.core.rundir import RunDir

    run = RunDir(Path(target))
    name = target.replace(":", "-").strip("/.").replace("/", "--")
    return run.evaluation if run.is_run() else Path("evaluation") / name
