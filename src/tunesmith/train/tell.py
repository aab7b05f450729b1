"""Telling: each event to the run's file, to listeners and to whoever started the run. None of them can stop it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tunesmith.core.events import Event, read_events
from tunesmith.core.rundir import RunDir, write_atomic
from tunesmith.train.listeners import Hears, Listener

Hear = Callable[[Event], None]


class Teller:
    """Tells events in order; a listener that fails is dropped with a note, and training goes on."""

    def __init__(self, folder: RunDir, listeners: Sequence[Listener], hear: Hear, *, main: bool = True) -> None:
        self.folder = folder
        self.hear = hear
        self.main = main
        if main:
            _cut_unfinished(folder.events)
        self.file = folder.events.open("a", encoding="utf-8") if main else None
        self.listening: list[tuple[str, Hears]] = []
        for listener in listeners if main else ():
            self._guarded(listener.name(), lambda listener=listener: self._open(listener, folder))

    def __call__(self, event: Event) -> None:
        if self.file is None:
            return
        self.file.write(event.line() + "\n")
        self.file.flush()
        self.hear(event)
        for name, listener in list(self.listening):
            self._guarded(name, lambda listener=listener: listener.hear(event))

    def note(self, text: str) -> None:
        """Tell a person something: an automatic choice and its reason, a fall-back."""
        self(Event("note", values={"text": text}))

    def rewind(self, step: int) -> None:
        """Take events of steps after `step` out of the run's file, before those steps are done again."""
        if self.file is None:
            return
        self.file.close()
        kept = [event.line() + "\n" for event in read_events(self.folder.events) if event.step <= step]
        write_atomic(self.folder.events, "".join(kept).encode())
        self.file = self.folder.events.open("a", encoding="utf-8")

    def close(self) -> None:
        """Tell listeners that the run is over."""
        for name, listener in list(self.listening):
            self._guarded(name, listener.close)
        if self.file is not None:
            self.file.close()
            self.file = None

    def _open(self, listener: Listener, folder: RunDir) -> None:
        self.listening.append((listener.name(), listener.open(folder)))

    def _guarded(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # a tracker's fault, of whatever kind, must not cost a night of training
            self.listening = [(other, hears) for other, hears in self.listening if other != name]
            self.note(f"the listener {name} failed and is left out from here: {type(error).__name__}: {error}")


def _cut_unfinished(events: Path) -> None:
    """Take off a last line that a crash or a full disk cut short, so that the next event does not join it."""
    if not events.is_file():
        return
    with events.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
