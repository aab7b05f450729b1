"""What is printed, and how: colours and bars on a terminal, plain lines everywhere else.

Texts from files and models go through `clean`, so that none of them can steer the terminal.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tunesmith.core.problem import Problem

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 120
"""Columns where there is no terminal to ask."""

TABLE_WIDTH = 200
"""Columns of a table where there is no terminal: nothing is broken into two lines."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def console(*, errors: bool = False) -> Console:
    """Standard output (or standard error) as rich writes it: no markup is read, no numbers are coloured."""
    from rich.console import Console

    made = Console(stderr=errors, highlight=False, markup=False, emoji=False)
    if not made.is_terminal and "COLUMNS" not in made._environ:  # pyright: ignore[reportPrivateUsage]
        made.width = PIPED_WIDTH
    return made


def hush() -> None:
    """Keep the bars of transformers off the screen, which would tear ours; those of downloads stay on a terminal."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    if sys.stderr.isatty() and "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ:
        enable_progress_bars()


def interactive() -> bool:
    """Whether a person sits at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def clean(text: str) -> str:
    """The text with its control characters made visible; line breaks and tabs stay."""
    return _CONTROL.sub(lambda found: _picture(ord(found.group())), text.replace("\r\n", "\n"))


def say(text: str = "", style: str | None = None) -> None:
    """Print a paragraph or a line as it is; long lines are left to the terminal."""
    console().print(clean(text), style=style, soft_wrap=True)


def heading(text: str) -> None:
    """Print a heading with an empty line before it."""
    console().print(f"\n{text}", style="bold")


def fault(problem: Problem) -> None:
    """Print what a person can mend, on standard error."""
    from rich.text import Text

    shown = Text(clean(str(problem)))
    shown.stylize("bold red", 0, len(clean(problem.where)))
    console(errors=True).print(shown, soft_wrap=True)


def pairs(rows: Iterable[tuple[str, str]], indent: str = "  ") -> None:
    """Print names and values in two columns."""
    listed = [(clean(name), clean(value)) for name, value in rows]
    width = max((len(name) for name, _ in listed), default=0)
    for name, value in listed:
        console().print(f"{indent}{name:<{width}}  {value}".rstrip(), soft_wrap=True)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[int] = ()) -> None:
    """Print a table; `numbers` are the columns set flush right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    right = set(numbers)
    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for place, name in enumerate(head):
        made.add_column(name, justify="right" if place in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(clean(cell)) for cell in row))
    out = console()
    out.print(made, width=out.width if out.is_terminal else TABLE_WIDTH)


def beside(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print texts side by side with a line between the rows: a prompt, and what each model answers."""
    from rich.box import ROUNDED
    from rich.table import Table
    from rich.text import Text

    made = Table(box=ROUNDED, show_lines=True, header_style="bold", expand=True)
    for name in head:
        made.add_column(name, ratio=1, overflow="fold")
    for row in rows:
        made.add_row(*(Text(clean(cell)) for cell in row))
    console().print(made)


def command(*words: object) -> str:
    """A command line that can be pasted into a shell."""
    return shlex.join(["tunesmith", *(str(word) for word in words)])


def duration(seconds: float) -> str:
    """A time for a person: `48 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def number(value: float) -> str:
    """A measured value with as many digits as mean something: `2.345`, `0.0123`, `1.2e-05`."""
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.2g}"
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3f}"


def _picture(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"<{code:02x}>"
