"""The command `tunesmith`: finds the verb, loads only that one, and turns faults into sentences.

arguments ─▶ Verbs (names only) ─▶ verbs/NAME.py ─▶ its function
                 └─ Problem ─▶ a paragraph on stderr, exit 2 · Ctrl-C ─▶ a sentence, exit 130 · the rest: traceback
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from tunesmith.core.problem import Problem

PANELS = {
    "Start here": ("demo", "new"),
    "Look at data": ("data",),
    "Train": ("plan", "train", "resume"),
    "Use what was trained": ("evaluate", "compare", "chat", "fold", "merge", "adapters"),
    "Find out": ("explain", "doctor", "schema", "version"),
}
"""The verbs in the order of the help; each is a file, or a folder of files, under `verbs`."""

NOISY = ("bitsandbytes", "torchao", "torch.utils._pytree")
"""Libraries that tell, when they are imported, which parts for other machines they leave out."""

SPINS = "10000"
"""Turns that a thread waits awake: tens of microseconds, as long as small operations stand apart."""

SETTINGS = {"help_option_names": ["-h", "--help"]}

EPILOG = """\
Three commands from data to a tuned model:

  tunesmith new run.yaml --data rows.jsonl
  tunesmith train run.yaml
  tunesmith chat runs/NAME --against

`tunesmith demo` shows all of it on what ships with the package. `tunesmith
explain NAME` tells what any option is."""


class Verbs(TyperGroup):
    """The group of all verbs; a verb's file is read when the verb is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for names in PANELS.values() for name in names]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        panel = next((panel for panel, names in PANELS.items() if cmd_name in names), None)
        return None if panel is None else _load(cmd_name, panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        self.commands = dict.fromkeys(self.list_commands(ctx))  # type: ignore[assignment]  # suggestions read the names
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Problem as problem:
            from tunesmith.cli import screen

            screen.fault(problem)
            raise typer.Exit(2) from problem
        except EOFError as bug:  # which the library would take for the end of a person's typing
            raise RuntimeError(f"a file or stream ended early: {bug}") from bug
        except (KeyboardInterrupt, typer.Abort) as stop:
            print("\nStopped. Nothing that was saved is lost.", file=sys.stderr)
            raise typer.Exit(130) from stop


def wait_shortly() -> None:
    """Have torch's threads wait for each other awake for some microseconds, then asleep, unless a person has said how.

    By themselves they spin for long: on a busy machine, where they hold each other up, a small model was seen to train
    thirty times slower than with threads that sleep at once, which costs a third of small operations on an idle one.
    Torch reads this when it is loaded; the second is for GNU's OpenMP, which comes with it on Linux.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def main() -> int:
    """Run the command line; returns the exit status where none is raised."""
    wait_shortly()
    for library in NOISY:
        logging.getLogger(library).setLevel(logging.ERROR)
    app = typer.Typer(
        cls=Verbs,
        name="tunesmith",
        help="Fine-tune language models, from raw data to a measured, folded, chatting model.",
        epilog=EPILOG,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings=SETTINGS,
    )
    app.callback()(_root)
    app(prog_name="tunesmith")
    return 0


def _root() -> None:
    """Every verb stands in a file of its own."""


def _load(name: str, panel: str) -> Any:
    module = importlib.import_module(f"tunesmith.cli.verbs.{name}")
    if not hasattr(module, "VERBS"):
        return _command(module, name, panel)
    group = typer.Typer(add_completion=False, no_args_is_help=True, context_settings=SETTINGS)
    group.callback(help=module.__doc__)(lambda: None)
    command: Any = typer.main.get_command(group)
    command.name, command.rich_help_panel = name, panel
    for verb in module.VERBS:
        inner = importlib.import_module(f"{module.__name__}.{verb}")
        command.commands[verb] = _command(inner, verb, None)
    return command


def _command(module: Any, name: str, panel: str | None) -> Any:
    """The command of a verb's file: the function of the same name, with the examples after its help."""
    app = typer.Typer(add_completion=False, context_settings=SETTINGS)
    app.command(name, epilog=module.EPILOG, rich_help_panel=panel, no_args_is_help=False)(getattr(module, name))
    return typer.main.get_command(app)


if __name__ == "__main__":
    sys.exit(main())
