"""What the attacks stand on: child processes, damage to files, and what a fault must look like.

A child is forked from the warm test process, so that a real process can be killed in a second instead of ten; the
exit status is the one that a shell would see.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.problem import Problem

LONG = os.environ.get("TUNESMITH_LONG_ATTACKS", "") not in ("", "0")
"""Set TUNESMITH_LONG_ATTACKS=1 for the long variants: every moment of a kill, every byte of a small file."""

CRASHED = 99


@dataclass(frozen=True)
class Ended:
    """How a child process ended: its exit status (minus the signal's number for a signal), and what it printed."""

    status: int
    text: str


def forked(act: Callable[[], object], log: Path) -> Ended:
    """Run `act` in a child process of its own."""
    child = os.fork()
    if child == 0:
        _die_with(_within(act, log))
    _, status = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(status), log.read_text("utf-8", errors="replace"))


def started(act: Callable[[], object], log: Path) -> int:
    """Start `act` in a child process and return its id; `ended` waits for it."""
    child = os.fork()
    if child == 0:
        _die_with(_within(act, log))
    return child


def ended(child: int, log: Path) -> Ended:
    """Wait for a started child."""
    _, status = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(status), log.read_text("utf-8", errors="replace"))


def command(*words: object) -> Callable[[], object]:
    """The command line, as `tunesmith WORDS` runs it."""

    def act() -> object:
        from tunesmith.cli.__main__ import main

        sys.argv = ["tunesmith", *map(str, words)]
        return main()

    return act


def _within(act: Callable[[], object], log: Path) -> int:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    try:
        act()
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 0
    except Problem as problem:
        sys.stderr.write(f"{problem}\n")
        return 2
    except BaseException:
        traceback.print_exc()
        return CRASHED
    return 0


def _die_with(status: int) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


@contextlib.contextmanager
def patched(owner: Any, name: str, value: Any) -> Any:
    """An attribute with another value for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield before
    finally:
        setattr(owner, name, before)


def one_paragraph(text: str) -> None:
    """A fault for a person: said in words, in one paragraph (several faults: one line each), without a traceback."""
    assert "Traceback" not in text, text
    assert text.strip(), "nothing was said"
    assert "\n\n" not in text.strip(), text
    assert len(text) < 3000, f"{len(text)} characters are no paragraph"


def flip(file: Path, place: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= 1 << bit
    file.write_bytes(bytes(content))


class Trap:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.canary, "the code of a stranger ran"))


def trap(file: Path, canary: Path) -> Path:
    """A file that runs code where it is unpickled."""
    file.write_bytes(pickle.dumps({"weight": Trap(canary)}))
    return file
