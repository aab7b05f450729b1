"""The main job from end to end, on what ships with the package."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli import imports, screen

if TYPE_CHECKING:
    from tunesmith.core.records import Chat
    from tunesmith.core.run import Run
    from tunesmith.core.rundir import RunDir

EPILOG = """\
Examples:

  tunesmith demo
  tunesmith demo --steps 10 --output runs/first-look

It needs no network and no GPU, and takes about two minutes. Everything that
it makes is in one folder."""

ASKED = 6
"""How many held-out questions are shown with both answers."""
ANSWER_TOKENS = 48


def demo(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder for all it makes; by default runs/demo-TIME.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Train at most so many steps each, for a shorter look.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The model to tune, instead of the small ones that ship.")
    ] = None,
) -> None:
    """Show the main job: train, compare base and tuned, measure on held-out rows, fold, and prove it equal."""
    folder = output or Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    _refuse_used(folder)
    _opening(folder, model)
    imports.models()
    identity = _train("identity", "1  Who am I? A LoRA on 60 short chats", folder, model, steps)
    _before_and_after(identity)
    _measure(identity, "identity_test")
    reviews = _train("reviews", "2  Is a review positive? All weights, on 512 labelled reviews", folder, model, steps)
    _measure(reviews, "reviews_test")
    _fold(identity)
    _end(folder, identity, reviews)


def _refuse_used(folder: Path) -> None:
    from tunesmith.core.problem import Problem

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Problem(str(folder), "is there already and not empty", "Name another folder with --output")


def _opening(folder: Path, model: str | None) -> None:
    screen.heading("tunesmith demo")
    screen.say(f"On {f'the model {model}' if model else 'the small models'} and the examples that ship, this will:")
    for line in (
        "1  train a LoRA that gives a chat model another name, and ask base and tuned model the same new questions",
        "2  train all weights of a base model on reviews, and measure base and tuned on reviews that neither has seen",
        "3  fold the adapter of the first into plain weights, and prove the folded model equal",
    ):
        screen.say(f"  {line}")
    screen.say(f"Everything goes into {folder}.")


def _train(name: str, title: str, folder: Path, model: str | None, steps: int | None) -> RunDir:
    screen.heading(title)
    run = _run(name, folder, model, steps)
    from tunesmith.cli.progress import Display
    from tunesmith.train.verb import train

    with Display(name) as display:
        result = train(run, name=name, base=example_run(name).parent, hear=display.hear)
    if result.ended == "preempted":
        raise KeyboardInterrupt
    took = f"{result.state.step:,} steps in {screen.duration(result.state.seconds)}"
    screen.say(f"  {took}; loss plot: {result.folder.plots / 'loss.png'}")
    return result.folder


def example_run(name: str) -> Path:
    """The run file of an example that ships."""
    from tunesmith import builtin

    return builtin.example(name).with_suffix(".yaml")


def _run(name: str, folder: Path, model: str | None, steps: int | None) -> Run:
    """The shipped run file, with the folder, model and number of steps of this demo."""
    from tunesmith.core.run import read_run

    run = read_run(example_run(name))
    train = run.train if steps is None else run.train.model_copy(update={"steps": min(steps, run.train.steps or steps)})
    spec = run.model if model is None else run.model.model_copy(update={"path": model})
    return run.model_copy(update={"model": spec, "train": train, "output": str(folder / name)})


def _before_and_after(folder: RunDir) -> None:
    """Held-out questions, answered by the base and by the tuned model."""
    screen.say()
    screen.say("Questions that were not in the training rows, answered by both:")
    asks = _questions()
    screen.beside(("question", "base", "tuned"), _answers(folder, asks))


def _questions() -> list[Chat]:
    """The first turns of the held-out chats."""
    from tunesmith import builtin
    from tunesmith.core.records import Chat
    from tunesmith.core.run import DataSpec
    from tunesmith.data.sources import open_source

    source = open_source(DataSpec(path=str(builtin.example("identity_test"))))[0]
    chats = [record for record in source.records() if isinstance(record, Chat)]
    return [Chat(chat.messages[:1]) for chat in chats[:ASKED]]


def _answers(folder: RunDir, asks: list[Chat]) -> list[tuple[str, str, str]]:
    from tunesmith.core.run import ModelSpec
    from tunesmith.generate.engines.local import Local
    from tunesmith.generate.opened import open_model
    from tunesmith.generate.sampling import Sampling

    screen.hush()
    opened = open_model(ModelSpec(path=str(folder.path)))
    sampling = Sampling(max_tokens=ANSWER_TOKENS)
    base = Local().bind(opened.trained, opened.codec, opened.off).answer(asks, sampling)
    tuned = Local().bind(opened.trained, opened.codec).answer(asks, sampling)
    return [(ask.messages[0].content, old.text, new.text) for ask, old, new in zip(asks, base, tuned, strict=True)]


def _measure(folder: RunDir, rows: str) -> None:
    """Base against tuned on example rows that were kept apart."""
    from tunesmith import builtin
    from tunesmith.cli.progress import Counting
    from tunesmith.cli.verbs.evaluate import show
    from tunesmith.core.run import DataSpec
    from tunesmith.evaluate.verb import evaluate

    screen.hush()
    with Counting() as counting:
        results = evaluate(str(folder.path), [DataSpec(path=str(builtin.example(rows)))], listen=counting.hear)
    show(results)
    results.save(folder.evaluation)


def _fold(folder: RunDir) -> None:
    from tunesmith.merge.fold import fold

    screen.heading("3  Fold the adapter into plain weights, and compare")
    screen.hush()
    done = fold(str(folder.path), hear=lambda text: screen.say(f"  {text}", "dim"))
    for line in done.lines:
        screen.say(f"  {line}")


def _end(folder: Path, identity: RunDir, reviews: RunDir) -> None:
    screen.heading("What was made")
    screen.pairs(
        [
            ("all of it", str(folder)),
            ("loss plots", f"{identity.plots / 'loss.png'}, {reviews.plots / 'loss.png'}"),
            ("report", str(reviews.evaluation / "report.html")),
        ]
    )
    screen.heading("What to do next")
    screen.say("Talk with the model that knows its name, beside the one that does not:")
    screen.say(f"  {screen.command('chat', identity.path, '--against')}", "cyan")
    screen.say("Look at the exact tokens of a row, and which of them were learned:")
    screen.say(f"  {screen.command('data', 'view', '--run', reviews.path, '--row', 1)}", "cyan")
    screen.say("Train on your own rows:")
    screen.say(f"  {screen.command('new', 'run.yaml', '--data', 'rows.jsonl')}", "cyan")
    screen.say(f"  {screen.command('train', 'run.yaml')}", "cyan")
