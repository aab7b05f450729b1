"""Compare methods on one task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli import screen

if TYPE_CHECKING:
    from tunesmith.compare.study import Budget, Study
    from tunesmith.compare.table import Table

EPILOG = """\
Examples:

  tunesmith compare run.yaml --methods lora,vera,prefix --tokens 200000
  tunesmith compare run.yaml --methods lora,full --minutes 5 --seeds 3
  tunesmith compare run.yaml -m lora -m "lora: {rank: 64}" --lr 1e-4,1e-3
  tunesmith compare run.yaml -m lora,full --base ORG/NAME --base FOLDER

Every trial is a run folder of its own under OUTPUT/trials. Stopped or
killed, the same command goes on with what is not done. Each method learns
with its usual rate, or with the one it is named with (lora@1e-3), or tries
those of --lr; then its best one counts."""


def compare(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The task: data, objective, validation.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=VALUE]...", help="Options to set instead of what the file says."),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option("--methods", "-m", help="Methods by name, with commas between; or one with options, as YAML."),
    ] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", min=1, help="Tokens that each trial learns from.")] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.01, help="Minutes that each trial trains.")
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Trials of each method, which differ by chance only.")
    ] = 1,
    base: Annotated[
        list[str] | None, typer.Option("--base", help="A base model; give several to compare them.")
    ] = None,
    lr: Annotated[str | None, typer.Option("--lr", help="Learning rates that every method tries, with commas.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder of the study; by default runs/compare-NAME.")
    ] = None,
) -> None:
    """Train one task with several methods under the same budget, and put them into one table and one plot."""
    from tunesmith.cli import runs
    from tunesmith.compare.study import Study

    run, home = runs.read(run_file, changes)
    study = Study.of(
        output or Path("runs") / f"compare-{run_file.stem.removeprefix('compare-')}",
        run,
        home,
        named(methods or []),
        bases=tuple(base or ()),
        rates=_rates(lr),
        seeds=seeds,
        budget=_budget(tokens, minutes),
    )
    screen.say(f"Comparing {', '.join(study.methods)}: {study.budget.words()}, seeds {seeds}", "bold")
    table = _carried_out(study)
    show(table)
    _save(table)


def named(values: list[str]) -> tuple[str, ...]:
    """Methods as they were named: commas part names, and stand for themselves inside of options."""
    out: list[str] = []
    for value in values:
        out += [value] if "{" in value or ":" in value else [part.strip() for part in value.split(",") if part.strip()]
    return tuple(dict.fromkeys(out))


def show(table: Table) -> None:
    """Print the table of every base and the verdict."""
    from tunesmith.compare.table import HEAD

    for base in table.study.bases:
        if rows := table.rows(base):
            screen.heading(f"{base}: {table.measure.name if table.measure else ''}")
            screen.table(HEAD, rows, numbers=range(1, len(HEAD)))
    screen.say()
    for sentence in table.verdict():
        screen.say(sentence)


def _carried_out(study: Study) -> Table:
    from tunesmith.cli.progress import Counting
    from tunesmith.compare.outcome import Outcome
    from tunesmith.compare.table import Table, shown
    from tunesmith.compare.work import carry_out

    found: list[object] = []
    screen.hush()
    total = sum(1 for _ in study.trials())
    with Counting() as counting:
        for outcome in carry_out(study, counting.hear):
            found.append(outcome)
            measured = isinstance(outcome, Outcome)
            said = f"{outcome.quality.name} {shown(outcome.quality, outcome.quality.value)}" if measured else "refused"
            counting.console.print(f"  {len(found)} of {total}  {screen.clean(outcome.trial.name)}: {said}")
    return Table.of(study, found)  # type: ignore[arg-type]


def _save(table: Table) -> None:
    from tunesmith.compare.picture import picture
    from tunesmith.core.rundir import write_atomic

    folder = table.study.folder
    write_atomic(folder / "comparison.json", (json.dumps(table.plain(), ensure_ascii=False, indent=2) + "\n").encode())
    write_atomic(folder / "comparison.md", table.markdown().encode())
    made = [("table", "comparison.md"), ("figures", "comparison.json")]
    if table.entries:
        write_atomic(folder / "comparison.png", picture(table))
        made.append(("plot", "comparison.png"))
    screen.say()
    screen.pairs((what, str(folder / name)) for what, name in made)


def _rates(text: str | None) -> tuple[float, ...] | None:
    from tunesmith.core.problem import Problem

    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise Problem("--lr", f"{text!r} is no list of numbers", "Write it as 1e-4,1e-3") from error


def _budget(tokens: int | None, minutes: float | None) -> Budget:
    from tunesmith.compare.study import Budget
    from tunesmith.core.problem import Problem

    if tokens is not None and minutes is not None:
        raise Problem("--minutes", "is given beside --tokens, and a budget is one of them", "Take one of them out")
    return Budget(tokens, minutes)
