"""Talk with a model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli import imports, screen

if TYPE_CHECKING:
    from tunesmith.cli.conversation import Conversation, Speaker
    from tunesmith.cli.wardrobe import Wardrobe
    from tunesmith.core.run import ModelSpec
    from tunesmith.generate.engines.local import Local
    from tunesmith.generate.sampling import Sampling

EPILOG = """\
Examples:

  tunesmith chat runs/mine
  tunesmith chat runs/mine --against
  tunesmith chat runs/mine --prompt "Who are you?"
  cat questions.txt | tunesmith chat builtin:seedling-chat
  tunesmith chat runs/mine --weights int8
  tunesmith chat BASE --adapter law=runs/law --adapter short=runs/short

In a chat, /reset forgets what was said, /exit leaves, /help lists the
commands. Ctrl-C stops an answer; at the prompt, twice leaves. From a pipe
every line is a question, and the answers go to standard output.

With --adapter, /use law answers with one adapter, /use law+short with the sum
of two, /use law short with two side by side, /base with the base alone, and
/adapters lists them."""

COMMANDS = {
    "/reset": "forget what was said",
    "/exit": "leave",
    "/help": "list the commands",
}


def chat(
    target: Annotated[
        str, typer.Argument(metavar="FOLDER|MODEL", help="A run folder, an adapter, a model folder, or a model's id.")
    ],
    against: Annotated[
        bool, typer.Option("--against", help="Show the answers of the base beside those of the tuned model.")
    ] = False,
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", metavar="NAME=FOLDER", help="Put an adapter or run over the model, under a name."),
    ] = None,
    use: Annotated[
        list[str] | None,
        typer.Option(
            "--use",
            metavar="NAME[+NAME]",
            help="Answer with these adapters, by default the first; given again, side by side.",
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Ask this one question and end.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="A system turn to begin the chat with.")] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Continue what is typed as plain text, without the chat template.")
    ] = False,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="The longest answer, in tokens.")] = 256,
    temperature: Annotated[
        float,
        typer.Option("--temperature", min=0.0, help="0 takes the likeliest token, 1 samples as the model has it."),
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option("--top-p", min=0.01, max=1.0, help="Sample from the likeliest tokens of this share.")
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Every draw follows from it.")] = 0,
    device: Annotated[str, typer.Option("--device", help="Where to compute: auto, cpu, cuda or mps.")] = "auto",
    quantize: Annotated[
        str,
        typer.Option(
            "--quantize", help="Hold the base in nf4, fp4, int8 or none; auto holds a run's as it was trained."
        ),
    ] = "auto",
    weights: Annotated[str, typer.Option("--weights", help="On a CPU: plain, or faster in int8 or int4.")] = "plain",
) -> None:
    """Talk with a model; answers are shown as they are written."""
    from tunesmith.core.options import parse
    from tunesmith.core.run import ModelSpec
    from tunesmith.generate.sampling import Sampling

    drawn = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    sampling = parse(Sampling, drawn, "chat")
    spec = parse(ModelSpec, {"path": target, "device": device, "quantize": quantize}, "chat")
    imports.models()
    from tunesmith.cli.conversation import Conversation
    from tunesmith.generate.engines.local import Local

    engine = parse(Local, {"weights": weights}, "chat")
    screen.hush()
    wardrobe = _wardrobe(spec, adapter or [], use or [], engine)
    speakers = _dressed(wardrobe, use, against) if wardrobe else _speakers(spec, against, engine, sampling)
    talk = Conversation(speakers, sampling, system, as_text=text)
    _begin(talk, prompt, target, wardrobe)
    _tell_drafts(speakers)


def _tell_drafts(speakers: Sequence[Speaker]) -> None:
    """How well those who drafted their answers did."""
    for speaker in speakers:
        if drafted := getattr(speaker.answers, "told", None):
            print(drafted, file=sys.stderr)


def _begin(talk: Conversation, prompt: str | None, target: str, wardrobe: Wardrobe | None) -> None:
    """One question, a person's, or those of a pipe."""
    if prompt is not None:
        talk.ask(prompt)
    elif sys.stdin.isatty():
        _typed(talk, target, wardrobe)
    else:
        _piped(talk, wardrobe)


def _wardrobe(spec: ModelSpec, adapters: list[str], use: list[str], engine: Local) -> Wardrobe | None:
    """The base with its adapters, where any are named.

    Raises:
        Problem: as `Wardrobe`, there are none to use, or the base is to be rounded beneath several.
    """
    from tunesmith.core.problem import Problem

    if not adapters:
        if use:
            raise Problem(f"--use {use[0]}", "no adapters are named", "Add --adapter NAME=FOLDER")
        return None
    if engine.weights != "plain":
        what = "is for one model, and adapters that are changed in a chat stand over plain weights"
        raise Problem(f"--weights {engine.weights}", what, "Leave it out, or name the folder of one adapter alone")
    from tunesmith.cli.wardrobe import Wardrobe
    from tunesmith.models.heads import HeadSpec
    from tunesmith.models.load import told_of

    wardrobe = Wardrobe(spec, adapters)
    loaded = wardrobe.shelf.loaded
    if loaded.held is not None:
        print(told_of(loaded.found, HeadSpec("lm"), loaded.held), file=sys.stderr)
    return wardrobe


def _dressed(wardrobe: Wardrobe, use: list[str] | None, against: bool) -> list[Speaker]:
    """A speaker for each choice, and the base before them if that was asked for."""
    return wardrobe.speakers([*(["base"] if against else []), *(use or list(wardrobe.shelf.adapters)[:1])])


def _speakers(spec: ModelSpec, against: bool, engine: Local, sampling: Sampling) -> list[Speaker]:
    """The model, and its base before it if that was asked for; Medusa heads draft its greedy answers."""
    from tunesmith.cli.conversation import Speaker
    from tunesmith.generate.engines.medusa import Medusa
    from tunesmith.generate.held import hold
    from tunesmith.generate.opened import open_model
    from tunesmith.methods.medusa import has_heads
    from tunesmith.models.heads import HeadSpec
    from tunesmith.models.load import told_of

    opened = open_model(spec)
    if opened.loaded.held is not None:
        print(told_of(opened.loaded.found, HeadSpec("lm"), opened.loaded.held), file=sys.stderr)
    drafts = sampling.temperature == 0 and has_heads(opened.trained)
    hold(opened.trained, engine.weights)
    tuned = (Medusa() if drafts else engine).bind(opened.trained, opened.codec)
    if not against:
        return [Speaker("", tuned)]
    if opened.adapted:
        return [Speaker("base", engine.bind(opened.trained, opened.codec, opened.off)), Speaker("tuned", tuned)]
    base = open_model(spec.model_copy(update={"path": _base_of(spec.path)}))
    hold(base.trained, engine.weights)
    return [Speaker("base", engine.bind(base.trained, base.codec)), Speaker("tuned", tuned)]


def _base_of(target: str) -> str:
    """The model that a run started from, where the run changed the whole model.

    Raises:
        Problem: the target is no run, so its base is not known.
    """
    from tunesmith.core.problem import Problem
    from tunesmith.core.run import read_run
    from tunesmith.core.rundir import RunDir

    folder = RunDir(Path(target))
    if not folder.is_run():
        raise Problem(target, "is neither a run nor an adapter, so its base is not known", "Leave --against out")
    return read_run(folder.run_file).model.path


def _typed(talk: Conversation, target: str, wardrobe: Wardrobe | None = None) -> None:
    """A chat with a person: one Ctrl-C stops an answer or warns, a second one leaves."""
    with suppress(ImportError):
        import readline  # noqa: F401 - gives the prompt its editing and history
    screen.say(f"Talking with {target}. /help lists the commands.", "dim")
    warned = False
    while True:
        try:
            question = input("\nyou: ").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            if warned:
                print()
                return
            warned = True
            screen.say("\nCtrl-C again leaves.", "dim")
            continue
        warned = False
        if question and not _turn(talk, question, wardrobe):
            return


def _turn(talk: Conversation, question: str, wardrobe: Wardrobe | None = None) -> bool:
    """One question or command of a person; False to leave."""
    if wardrobe is not None and _changed(talk, question, wardrobe):
        return True
    if question in ("/exit", "/quit"):
        return False
    if question == "/reset":
        talk.reset()
        screen.say("What was said is forgotten.", "dim")
    elif question.startswith("/"):
        screen.pairs((COMMANDS | _further(wardrobe)).items())
    else:
        talk.ask(question)
    return True


def _changed(talk: Conversation, question: str, wardrobe: Wardrobe) -> bool:
    """Whether a line is a command about adapters; one that cannot be done is told, and the chat goes on."""
    from tunesmith.core.problem import Problem

    try:
        return wardrobe.hears(talk, question)
    except Problem as problem:
        screen.fault(problem)
        return True


def _further(wardrobe: Wardrobe | None) -> dict[str, str]:
    """The commands about adapters, where there are any."""
    if wardrobe is None:
        return {}
    from tunesmith.cli import wardrobe as adapters

    return adapters.COMMANDS


def _piped(talk: Conversation, wardrobe: Wardrobe | None = None) -> None:
    """Every line is a question; commands work too, one that cannot be done ends it, and Ctrl-C leaves."""
    for line in sys.stdin:
        question = line.strip()
        if question and wardrobe is not None and wardrobe.hears(talk, question):
            continue
        if question in COMMANDS or question == "/quit":
            if not _turn(talk, question):
                return
        elif question and not talk.ask(question):
            raise KeyboardInterrupt
