"""A side: one program with one setting, run in a process and an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.environments import python_of

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
Kind = Literal["ours", "plain", "peer", "other"]


@dataclass(frozen=True)
class Side:
    """
    name: as tables show it; work: `module:function`, called with `settings`, which gives back figures by name;
    kind: `ours`, our slow twin (`plain`), another program (`peer`), or one that
    does other work and so is shown, but compared with by nobody (`other`); environment: the name of one under
    `benchmarks/peers`, "" for the Python that runs the benchmark; variables: of the process's environment.
    """

    name: str
    work: str
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    kind: Kind = "ours"
    environment: str = ""
    variables: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Outcome:
    """What one run of a side gave: figures by name, and the versions of its packages."""

    figures: dict[str, Any]
    versions: dict[str, str]


def run(side: Side, threads: int = 1) -> Outcome:
    """Run a side once.

    Raises:
        RuntimeError: it failed; the end of what it printed is in the message.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        settings, result, log = (Path(scratch) / name for name in ("settings.json", "result.json", "log"))
        settings.write_text(json.dumps(side.settings), "utf-8")
        command = [python_of(side.environment), "-m", "bench.work", side.work, str(settings), str(result)]
        with log.open("wb") as stream:
            env = _env(side, threads, Path(scratch))
            code = subprocess.run(command, cwd=scratch, env=env, stdout=stream, stderr=stream).returncode
        if code or not result.is_file():
            told = log.read_text("utf-8", "replace")[-4000:]
            why = f"\nended by signal {-code}; 9 is how a system stops what takes too much memory" if code < 0 else ""
            raise RuntimeError(f"{side.name} ended with {code}:\n{told}{why}")
        found = json.loads(result.read_text("utf-8"))
    return Outcome(found["figures"], found["versions"])


def _env(side: Side, threads: int, scratch: Path) -> dict[str, str]:
    """The environment of a side's process; other programs do not see tunesmith's packages."""
    paths = [str(BENCHMARKS)] if side.environment else [str(BENCHMARKS), str(ROOT / "src")]
    given = "" if side.environment else os.environ.get("PYTHONPATH", "")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [*paths, given])),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(scratch / "datasets"),
        **side.variables,
    }
