"""A commented run file, from a few questions or flags."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli import screen

if TYPE_CHECKING:
    from tunesmith.core.records import Record

EPILOG = """\
Examples:

  tunesmith new
  tunesmith new run.yaml --data rows.jsonl --model Qwen/Qwen3-0.6B
  tunesmith new pairs.yaml --data pairs.jsonl --objective dpo --yes

Every option stands in the file with its help; what you do not set is
commented out with its default."""

DEFAULT_MODEL = "builtin:seedling"
DEFAULT_FILE = Path("run.yaml")


def new(
    file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run file to write.")] = DEFAULT_FILE,
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="Any other options to set in it.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", "-d", help="A file, folder or id on a hub to learn from.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="The model to start from.")] = None,
    objective: Annotated[
        str | None, typer.Option("--objective", help="What to get better at; by default it follows from the data.")
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help="What may change in the model; default lora.")] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", help="For labelled rows: what the model is asked, with {text} where the text goes."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing and take the defaults.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file of this name.")] = False,
) -> None:
    """Write a commented run file; asks for what has no good default and was not given."""
    from tunesmith.cli.run_file import write_out
    from tunesmith.core.aliases import expand
    from tunesmith.core.run import parse_run
    from tunesmith.core.rundir import write_atomic
    from tunesmith.core.yaml_file import assign

    if "=" in file.name:  # the name was left out, so the first change stands in its place
        file, changes = DEFAULT_FILE, [str(file), *(changes or [])]
    _refuse_existing(file, force)
    ask = screen.interactive() and not yes
    sources = data or _asked_data(ask)
    start = model or (typer.prompt("Which model", default=DEFAULT_MODEL) if ask else DEFAULT_MODEL)
    value: dict[str, Any] = {"model": {"path": start}, "data": [{"path": source} for source in sources]}
    if objective:
        value["objective"] = objective
    if method:
        value["method"] = method
    for change in changes or []:
        assign(value, change)
    kind = _kind_of_rows(value["data"][0])
    asked = _asked_prompt(prompt, kind, ask)
    for source in value["data"] if asked else []:
        source.setdefault("prompt", asked)
    if "objective" not in value:
        value["objective"] = _objective_for(kind)
    parse_run(value, "new")
    value, stood_for = expand(value)
    for text in stood_for:
        screen.say(text)
    write_atomic(file, write_out(value, file.name).encode())
    _told(file, value, "" if objective else f", since the rows are {kind.__name__} records")


def _refuse_existing(file: Path, force: bool) -> None:
    from tunesmith.core.problem import Problem

    if file.is_dir():
        raise Problem(str(file), "is a folder", "Name a file, such as run.yaml")
    if file.exists() and not force:
        raise Problem(str(file), "is there already, and it is not overwritten", "Take another name, or add --force")


def _asked_data(ask: bool) -> list[str]:
    from tunesmith.core.problem import Problem

    if not ask:
        raise Problem("--data", "no data is given, and there is no default for it", "Add --data FILE")
    return [typer.prompt("Which data (a file, folder or id on a hub)")]


def _kind_of_rows(source: dict[str, Any]) -> type[Record]:
    """The kind of record that a source holds, read as its options say."""
    from tunesmith.core.options import parse
    from tunesmith.core.run import DataSpec
    from tunesmith.data.sources import open_source

    return open_source(parse(DataSpec, source, "data.0"))[0].format.yields


def _asked_prompt(prompt: str | None, kind: type[Record], ask: bool) -> str | None:
    from tunesmith.core.records import Labelled

    if prompt is not None or kind is not Labelled or not ask:
        return prompt
    return typer.prompt("What is the model asked about each text ({text} stands for it)", default="{text}")


def _objective_for(kind: type[Record]) -> str:
    from tunesmith.core.problem import Problem
    from tunesmith.core.records import Chat, Labelled, Preference, Rated, Related, Tagged, Text

    usual: dict[type[Record], str] = {
        Text: "pretrain",
        Chat: "sft",
        Labelled: "sft",
        Preference: "dpo",
        Rated: "kto",
        Tagged: "tag",
        Related: "embed",
    }
    if kind not in usual:  # prompts: what an answer is worth is for the user to say
        raise Problem(
            "--objective",
            f"no objective follows from {kind.__name__} rows",
            "Name one with what rewards an answer: --objective grpo 'objective.grpo.rewards=[exact]'",
        )
    return usual[kind]


def _told(file: Path, value: dict[str, Any], why: str) -> None:
    objective = value["objective"]
    name = objective if isinstance(objective, str) else next(iter(objective))
    screen.say(f"{file} is written: objective {name}{why}.")
    screen.say()
    screen.say("Go on with:")
    for verb in ("plan", "train"):
        screen.say(f"  {screen.command(verb, file)}", "cyan")
