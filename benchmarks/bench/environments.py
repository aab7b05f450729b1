"""Environments of other programs, made once from `benchmarks/peers/NAME.txt` into a folder that git ignores.

A file of requirements is installed in steps, one a paragraph, so that what stands first decides: torch, at the version
of constraints.txt, keeps its build whatever comes later. A line `# pip: OPTIONS` gives the options of its paragraph.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1]
PLACE = BENCHMARKS / ".environments"
CONSTRAINTS = BENCHMARKS.parent / "constraints.txt"
OPTIONS = "# pip:"


@dataclass(frozen=True)
class Step:
    """One call of pip: its options and requirements."""

    options: tuple[str, ...]
    requirements: tuple[str, ...]


def python_of(name: str) -> str:
    """The Python of an environment, made if it is not there or not what its file says; "" is this one."""
    return sys.executable if not name else _made(name)


@cache
def _made(name: str) -> str:
    steps = [Step((), (torch_pin(),)), *steps_of((BENCHMARKS / "peers" / f"{name}.txt").read_text("utf-8"))]
    folder = PLACE / name
    stamp = hashlib.sha256(repr((sys.version_info[:2], steps)).encode()).hexdigest()
    if not _is(folder, stamp):
        print(f"making the environment {name} in {folder}", file=sys.stderr, flush=True)
        _make(folder, steps)
        (folder / "stamp").write_text(stamp)
    return str(folder / "bin" / "python")


def _is(folder: Path, stamp: str) -> bool:
    return (folder / "stamp").is_file() and (folder / "stamp").read_text() == stamp


def _make(folder: Path, steps: list[Step]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--upgrade", "pip"], check=True)
    for step in steps:
        subprocess.run([*pip, *step.options, *step.requirements, torch_pin()], check=True)


def torch_pin() -> str:
    """torch as constraints.txt has it."""
    found = re.search(r"^torch==\S+$", CONSTRAINTS.read_text("utf-8"), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{CONSTRAINTS} has no torch")
    return found[0]


def steps_of(text: str) -> list[Step]:
    """The steps that a file of requirements stands for."""
    return list(_steps(text))


def _steps(text: str) -> Iterator[Step]:
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in paragraph.splitlines() if line.strip()]
        options = [word for line in lines if line.startswith(OPTIONS) for word in line[len(OPTIONS) :].split()]
        wanted = [line for line in lines if not line.startswith("#")]
        if wanted:
            yield Step(tuple(options), tuple(wanted))
