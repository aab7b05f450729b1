"""Conversations: what is asked, what is remembered, and how an answer is stopped."""

from __future__ import annotations

import io
import sys
from collections.abc import Generator, Iterator, Sequence

import pytest

from tunesmith.cli.conversation import Conversation, Speaker
from tunesmith.cli.verbs import chat
from tunesmith.core.records import Chat, Text
from tunesmith.generate.engines import Answer, Answers, Ask
from tunesmith.generate.sampling import Sampling


class Echo(Answers):
    """Answers with the number of turns it saw and the last question, piece by piece; `!` interrupts it."""

    def __init__(self, word: str = "echo") -> None:
        self.word = word
        self.asked: list[Ask] = []
        self.closed = 0

    def answer(self, asks: Sequence[Ask], sampling: Sampling) -> Iterator[Answer]:
        raise NotImplementedError

    def stream(self, ask: Ask, sampling: Sampling) -> Generator[str, None, None]:
        self.asked.append(ask)
        last = ask.text if isinstance(ask, Text) else ask.messages[-1].content
        try:
            yield f"{self.word} "
            if last == "!":
                raise KeyboardInterrupt
            yield f"{last}\x1b"
        finally:
            self.closed += 1


def conversation(*speakers: Speaker, system: str | None = None, as_text: bool = False) -> Conversation:
    return Conversation(list(speakers), Sampling(), system, as_text=as_text)


def roles(ask: Ask) -> list[tuple[str, str]]:
    assert isinstance(ask, Chat)
    return [(message.role, message.content) for message in ask.messages]


def test_history_grows_and_is_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    echo = Echo()
    talk = conversation(Speaker("", echo), system="Be brief.")
    talk.ask("one")
    talk.ask("two")
    talk.reset()
    talk.ask("three")
    system, one = ("system", "Be brief."), [("user", "one"), ("assistant", "echo one\x1b")]
    assert [roles(ask) for ask in echo.asked] == [
        [system, ("user", "one")],
        [system, *one, ("user", "two")],
        [system, ("user", "three")],
    ]
    assert capsys.readouterr().out == "echo one␛\necho two␛\necho three␛\n"


def test_two_speakers_have_their_own_histories(capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned = Echo("base says"), Echo("tuned says")
    talk = conversation(Speaker("base", base), Speaker("tuned", tuned))
    talk.ask("hi")
    talk.ask("again")
    assert roles(base.asked[1])[1] == ("assistant", "base says hi\x1b")
    assert roles(tuned.asked[1])[1] == ("assistant", "tuned says hi\x1b")
    assert capsys.readouterr().out.startswith("base: base says hi␛\ntuned: tuned says hi␛\n")


def test_side_by_side_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    talk = conversation(Speaker("base", Echo("old")), Speaker("tuned", Echo("new")))
    assert talk.ask("hi")
    last = capsys.readouterr().out.splitlines()
    assert any("old hi␛" in line and "new hi␛" in line for line in last)


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    echo = Echo()
    speaker = Speaker("", echo)
    assert not conversation(speaker).ask("!")
    assert capsys.readouterr().out == "echo  (stopped)\n"
    assert [message.content for message in speaker.said] == ["!", "echo "]
    assert echo.closed == 1


def test_text_is_continued_without_a_template() -> None:
    echo = Echo()
    talk = conversation(Speaker("", echo), as_text=True)
    talk.ask("Once")
    assert echo.asked == [Text("Once")]


def test_a_pipe_asks_line_by_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    echo = Echo()
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\n/reset\n/usr/bin is a path\n/exit\nnever\n"))
    chat._piped(conversation(Speaker("", echo)))
    assert [roles(ask) for ask in echo.asked] == [[("user", "one")], [("user", "/usr/bin is a path")]]
    assert "\x1b" not in capsys.readouterr().out


def test_ctrl_c_ends_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("!\nnever\n"))
    with pytest.raises(KeyboardInterrupt):
        chat._piped(conversation(Speaker("", Echo())))


def test_at_the_prompt_ctrl_c_leaves_when_pressed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter(["hello", None, "again", None, None, "never"])

    def typing(prompt: str) -> str:
        line = next(typed)
        if line is None:
            raise KeyboardInterrupt
        return line

    monkeypatch.setattr("builtins.input", typing)
    echo = Echo()
    chat._typed(conversation(Speaker("", echo)), "it")
    assert [roles(ask)[-1][1] for ask in echo.asked] == ["hello", "again"]
    assert next(typed) == "never"
