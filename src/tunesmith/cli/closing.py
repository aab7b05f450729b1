"""What is said when a run ends: what was made, where it is, and the commands to go on with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tunesmith.cli import screen
from tunesmith.core.rundir import RunDir

if TYPE_CHECKING:
    from tunesmith.train.verb import Result

ENDED = {
    "done": "The run is done",
    "stalled": "The run ended early, since the validation loss did not fall any more",
    "preempted": "The run was stopped; its last step is saved",
}


def close(result: Result) -> None:
    """Print the end of a run."""
    state = result.state
    screen.say()
    screen.say(
        f"{ENDED.get(result.ended, result.ended)}: {state.step:,} steps, {state.tokens:,} tokens, "
        f"{screen.duration(state.seconds)} of training.",
        "bold",
    )
    screen.pairs(_made(result))
    screen.say()
    if result.ended == "preempted":
        screen.say("Go on with it:")
        screen.say(f"  {screen.command('resume', result.folder.path)}", "cyan")
        return
    screen.say("Go on with:")
    for line in next_commands(result.folder):
        screen.say(f"  {line}", "cyan")


def next_commands(folder: RunDir) -> Iterator[str]:
    """The commands that follow a finished run, by what was trained."""
    from tunesmith.methods._own import saved_method
    from tunesmith.models.ancestor import saved_length
    from tunesmith.models.source import find, head_of

    chats = head_of(find(str(folder.path))).kind == "lm"
    yield screen.command("evaluate", folder.path)
    if chats:
        yield screen.command("chat", folder.path, "--against")
    if is_adapter(folder) and not saved_length(folder.model) and saved_method(folder.model) is None:
        yield screen.command("fold", folder.path)
    elif chats:
        yield screen.command("chat", folder.path)


def is_adapter(folder: RunDir) -> bool:
    """Whether the run made an adapter rather than a whole model."""
    return (folder.model / "adapter_config.json").is_file()


def _made(result: Result) -> Iterator[tuple[str, str]]:
    from tunesmith.core.run import read_run

    folder, state = result.folder, result.state
    yield "folder", str(folder.path)
    if folder.model.is_dir():
        yield ("adapter" if is_adapter(folder) else "model"), str(folder.model)
    if state.best_step >= 0:
        rewarded = getattr(read_run(folder.run_file).objective, "online", False)
        name = "highest validation reward" if rewarded else "lowest validation loss"
        best = 0.0 - state.best if rewarded else state.best
        yield name, f"{screen.number(best)} at step {state.best_step:,}"
    if state.skipped:
        yield "skipped steps", f"{len(state.skipped):,} with a loss or gradient that was not finite"
    plot = folder.plots / "loss.png"
    if plot.is_file():
        yield "plot", str(plot)
