"""A conversation with one model, or with two side by side; each keeps a history of its own."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field

from rich.box import ROUNDED
from rich.live import Live
from rich.table import Table
from rich.text import Text as Styled

from tunesmith.cli import screen
from tunesmith.core.records import Chat, Message, Text
from tunesmith.generate.engines import Answers, Ask
from tunesmith.generate.sampling import Sampling

STOPPED = " (stopped)"


@dataclass
class Speaker:
    """A model in a conversation, under the name that its answers are shown with; no name where it is alone."""

    name: str
    answers: Answers
    said: list[Message] = field(default_factory=list[Message])


class Conversation:
    """Questions to one or two speakers, and what was said so far."""

    def __init__(self, speakers: list[Speaker], sampling: Sampling, system: str | None, *, as_text: bool) -> None:
        self.speakers = speakers
        self.sampling = sampling
        self.system = system
        self.as_text = as_text
        self.console = screen.console()

    def reset(self) -> None:
        """Forget what was said."""
        for speaker in self.speakers:
            speaker.said.clear()

    def ask(self, question: str) -> bool:
        """Ask all speakers and show their answers; False if Ctrl-C stopped them."""
        if len(self.speakers) == 1:
            return self._answer(self.speakers[0], question, self._print)
        if not self.console.is_terminal:
            finished = [self._named(speaker, question) for speaker in self.speakers]
            return all(finished)
        return self._beside(question)

    def _answer(self, speaker: Speaker, question: str, show: Callable[[str], None]) -> bool:
        """Stream one answer through `show` and remember it; what came before a stop is remembered too."""
        pieces: list[str] = []
        finished = True
        try:
            with closing(self._stream(speaker, question)) as stream:
                for piece in stream:
                    pieces.append(piece)
                    show(screen.clean(piece))
        except KeyboardInterrupt:
            finished = False
            show(STOPPED)
        if show == self._print:
            self.console.print()
        speaker.said += [Message("user", question), Message("assistant", "".join(pieces))]
        return finished

    def _stream(self, speaker: Speaker, question: str) -> Generator[str, None, None]:
        return speaker.answers.stream(self._turn(speaker, question), self.sampling)

    def _turn(self, speaker: Speaker, question: str) -> Ask:
        if self.as_text:
            return Text("".join(message.content for message in speaker.said) + question)
        first = [Message("system", self.system)] if self.system else []
        return Chat((*first, *speaker.said, Message("user", question)))

    def _print(self, piece: str) -> None:
        self.console.print(piece, end="", soft_wrap=True)

    def _named(self, speaker: Speaker, question: str) -> bool:
        self.console.print(f"{speaker.name}: ", end="", style="bold")
        return self._answer(speaker, question, self._print)

    def _beside(self, question: str) -> bool:
        """The answers in two columns that fill while they are written."""
        shown = {speaker.name: "" for speaker in self.speakers}
        finished = True
        with Live(console=self.console, auto_refresh=False) as live:
            for speaker in self.speakers:

                def show(piece: str, name: str = speaker.name) -> None:
                    shown[name] += piece
                    live.update(_columns(shown), refresh=True)

                finished = self._answer(speaker, question, show) and finished
        return finished


def _columns(shown: dict[str, str]) -> Table:
    made = Table(box=ROUNDED, expand=True, header_style="bold")
    for name in shown:
        made.add_column(name, ratio=1, overflow="fold")
    made.add_row(*(Styled(text) for text in shown.values()))
    return made
