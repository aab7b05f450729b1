"""The contract of listeners: who is told of events. One file a listener; none of them can stop training."""

from __future__ import annotations

from abc import abstractmethod

from tunesmith.core.events import Event
from tunesmith.core.plugins import Plugin
from tunesmith.core.rundir import RunDir


class Listener(Plugin):
    """Someone who is told of events while a run goes on."""

    @abstractmethod
    def open(self, folder: RunDir) -> Hears:
        """Start listening to a run."""


class Hears:
    """A listener at work."""

    def hear(self, event: Event) -> None:
        """Told of one event, on the main process, in order."""

    def close(self) -> None:
        """Told that the run has ended."""
