"""What is asked for quickly is answered without the heavy libraries; seen in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sources import SOURCE, modules

HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "sklearn", "scipy", "pandas", "matplotlib")

PROBE = """
import json, sys
{code}
json.dump(sorted(sys.modules), open(sys.argv[1], "w"))
"""

COMMAND = """
arguments, sys.argv[2:] = sys.argv[2:], []
from tunesmith.cli.__main__ import main
probe, sys.argv = sys.argv[1], ["tunesmith", *arguments]
try:
    status = main()
except SystemExit as end:
    status = end.code
sys.argv = ["probe", probe]
if status:
    sys.exit(f"ended with {status}")
"""


def loaded(code: str, folder: Path, *arguments: str) -> set[str]:
    """The modules that are loaded after `code` ran in a fresh interpreter."""
    answer = folder / "modules.json"
    path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(code=code), str(answer), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return set(json.loads(answer.read_text()))


def test_import_tunesmith_is_light(tmp_path: Path) -> None:
    found = loaded("import tunesmith", tmp_path)
    assert {name for name in found if name.startswith("tunesmith")} == {"tunesmith"}
    assert not found & {*HEAVY, "numpy", "pydantic", "rich", "typer"}


@pytest.mark.parametrize("room", ["core", "data"])
def test_rooms_without_torch(room: str, tmp_path: Path) -> None:
    inside = [name for name in modules() if name.startswith(f"tunesmith.{room}")]
    assert not loaded("import " + ", ".join(inside), tmp_path) & set(HEAVY)


@pytest.mark.parametrize(
    "arguments",
    ["--help", "version", "train --help", "data check rows.jsonl", "explain sft", "explain lora", "schema"],
)
def test_quick_answers_load_no_torch(arguments: str, tmp_path: Path) -> None:
    row = {"instruction": "Say hello.", "input": "", "output": "Hello."}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert not loaded(COMMAND, tmp_path, *arguments.split()) & set(HEAVY)
