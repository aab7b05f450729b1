"""Adapters in a conversation: chosen at the start, side by side, and changed by commands."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from made_methods import method_of
from transformers import AutoModelForCausalLM

from tunesmith.cli import __main__ as entry
from tunesmith.cli import screen
from tunesmith.cli.verbs import chat
from tunesmith.core.records import Chat, Message
from tunesmith.core.run import ModelSpec
from tunesmith.generate.engines.local import Local
from tunesmith.generate.sampling import Sampling

Call = Callable[..., tuple[int, str, str]]
QUESTION = "what is rain?"
SHORT = ["--max-tokens", "6", "--device", "cpu"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base, two LoRA adapters and one of DoRA."""
    where = tmp_path_factory.mktemp("wardrobe")
    base = tiny.folder(where / "base")
    for seed, (name, form) in enumerate({"law": "plain", "short": "plain", "dora": "dora"}.items()):
        method = method_of("lora", rank=4, form=form)
        trained = method.apply(AutoModelForCausalLM.from_pretrained(base))
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in trained.parameters():
                if weight.requires_grad and weight.ndim == 2:
                    weight.normal_(std=0.3)
        method.save(trained, where / name)
    return where


@pytest.fixture
def call(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.chdir(home)
        monkeypatch.setattr(sys, "argv", ["tunesmith", "chat", "base", *words, *SHORT])
        with pytest.raises(SystemExit) as end:
            sys.exit(entry.main())
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out, told.err

    return run


WORN = ("--adapter", "law=law", "--adapter", "short=short", "--adapter", "dora=dora")


def says(folder: Path, *turns: str) -> str:
    """What a model of its own answers to the last turn of a chat."""
    said = tuple(Message("user" if number % 2 == 0 else "assistant", turn) for number, turn in enumerate(turns))
    opened = Local().open(ModelSpec(path=str(folder), device="cpu"))
    return next(opened.answer([Chat(said)], Sampling(max_tokens=6))).text


def test_the_first_adapter_answers_and_others_side_by_side(home: Path, call: Call) -> None:
    law = says(home / "law", QUESTION)
    assert call(*WORN, "--prompt", QUESTION)[1] == screen.clean(law) + "\n"
    status, told, _ = call(
        *WORN, "--prompt", QUESTION, "--against", "--use", "law", "--use", "dora", "--use", "law+short"
    )
    base, dora = says(home / "base", QUESTION), says(home / "dora", QUESTION)
    assert status == 0
    assert told.startswith(screen.clean(f"base: {base}\nlaw: {law}\ndora: {dora}\nlaw+short: "))
    assert len({base, law, dora, told.partition("law+short: ")[2].rstrip("\n")}) == 4


def test_commands_change_what_answers_and_what_was_said_stays(
    home: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys, "stdin", io.StringIO(f"{QUESTION}\n/use dora\n{QUESTION}\n/base\n/reset\n{QUESTION}\n/adapters\n")
    )
    status, told, _ = call(*WORN)
    first = says(home / "law", QUESTION)
    second = says(home / "dora", QUESTION, first, QUESTION)
    assert status == 0
    assert told.startswith(
        f"{screen.clean(first)}\nAnswers come from: dora.\n{screen.clean(second)}\nAnswers come from: base.\n"
        f"What was said is forgotten.\n{screen.clean(says(home / 'base', QUESTION))}\n"
    )
    listed = told.splitlines()[-3:]
    assert [line.split()[0] for line in listed] == ["law", "short", "dora"]
    assert ["used alone" in line for line in listed] == [False, False, True]


def test_two_side_by_side_from_inside(call: Call, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"/use short law\n{QUESTION}\n"))
    _, told, _ = call(*WORN)
    wanted = f"short: {says(home / 'short', QUESTION)}\nlaw: {says(home / 'law', QUESTION)}\n"
    assert told == "Answers come from: short, law.\n" + screen.clean(wanted)


def test_at_the_prompt_a_fault_is_told_and_the_chat_goes_on(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tunesmith.cli.conversation import Conversation
    from tunesmith.cli.wardrobe import Wardrobe

    monkeypatch.chdir(home)
    wardrobe = Wardrobe(ModelSpec(path="base", device="cpu"), ["law=law", "dora=dora"])
    talk = Conversation(wardrobe.speakers(["law"]), Sampling(max_tokens=6), None, as_text=False)
    before = talk.speakers
    typed = iter(["/use law+dora", "/use lav", "/use", "/help", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    chat._typed(talk, "base", wardrobe)
    told = capsys.readouterr()
    assert "cannot be added to others: DoRA" in told.err
    assert "Did you mean 'law'?" in told.err and "names no adapter" in told.err
    assert "/use NAME" in told.out and "/reset" in told.out
    assert talk.speakers is before


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--adapter", "law"), "does not say NAME=FOLDER"),
        (("--adapter", "a=law", "--adapter", "a=short"), "has a name that is taken"),
        (("--adapter", "a+b=law"), "is no name for an adapter"),
        (("--adapter", "a=base"), "is a whole model"),
        (("--use", "law"), "no adapters are named"),
        ((*WORN, "--use", "law+dora"), "cannot be added to others: DoRA"),
        ((*WORN, "--use", "law", "--use", "law"), "names a choice twice"),
        ((*WORN, "--use", "lav"), "Did you mean 'law'?"),
    ],
)
def test_what_cannot_be_worn_is_refused(words: tuple[str, ...], reason: str, call: Call) -> None:
    status, told, faults = call(*words, "--prompt", QUESTION)
    assert (status, told) == (2, "")
    assert reason in faults and "Traceback" not in faults


def test_a_pipe_ends_at_a_command_that_cannot_be_done(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"/use law+dora\n{QUESTION}\n"))
    assert call(*WORN)[:2] == (2, "")
