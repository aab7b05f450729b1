"""No file of the project names the machines it was written on."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sources import REPOSITORY

# Written so that no pattern matches itself, and this file passes its own test.
PLACES = {
    "a path of a workplace": re.compile(r"/[w]ork/|/[r]oot/|/opt/(?:pypi|wheels)"),
    "a temporary path": re.compile(r"/tmp/[\w.-]+"),
    "the host of a package registry": re.compile(
        r"\b(?:pypi|pythonhosted|npmjs|deb\.debian|download\.pytorch)\.(?:org|com)\b"
    ),
}
MACHINES = re.compile(r"\bfarm-\w+")


def project_files() -> list[Path]:
    """What git tracks; skips where there is no git or no repository, as in an unpacked source archive."""
    if not shutil.which("git") or not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True)
    names = listed.stdout.decode().split("\0")
    return [file for name in names if name and (file := REPOSITORY / name).is_file()]


def texts() -> Iterator[tuple[str, str]]:
    for file in project_files():
        content = file.read_bytes()
        if b"\0" not in content[:8192]:
            yield str(file.relative_to(REPOSITORY)), content.decode("utf-8", errors="replace")


@pytest.mark.parametrize("kind", sorted(PLACES))
def test_no_places_of_a_machine(kind: str) -> None:
    found = {name: hit.group() for name, text in texts() if (hit := PLACES[kind].search(text))}
    assert not found


def test_no_names_of_machines() -> None:
    """Data is left out: a review of eggs may well praise the farm they came from."""
    found = {
        name: hit.group()
        for name, text in texts()
        if not name.endswith((".json", ".jsonl", ".csv", ".txt")) and (hit := MACHINES.search(text))
    }
    assert not found


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("a path of a workplace", "see {}work/main"),
        ("a temporary path", "in {}tmp{}x/y"),
        ("the host of a package registry", "from https:{}{}pypi{}org/simple"),
    ],
)
def test_the_check_sees_them(kind: str, text: str) -> None:
    assert PLACES[kind].search(text.replace("pypi{}", "pypi.").replace("{}", "/"))
