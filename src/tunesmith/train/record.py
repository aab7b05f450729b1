"""The record of a run: with what it was made, so that it can be made again and a changed input is noticed."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from typing import Any

from tunesmith import __version__
from tunesmith.core.problem import Problem, nearest
from tunesmith.core.rundir import RunDir, write_json

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "datasets", "numpy")


def versions() -> dict[str, str]:
    """Versions of tunesmith, Python and the libraries that results depend on."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"tunesmith": __version__, "python": platform.python_version(), **found}


def write_record(folder: RunDir, values: Mapping[str, Any]) -> None:
    """Write or extend the record; what is there under other names stays."""
    write_json(folder.record, {**read_record(folder), **values})


def read_record(folder: RunDir) -> dict[str, Any]:
    """The record of a run; empty before it is first written."""
    if not folder.record.is_file():
        return {}
    try:
        value = json.loads(folder.record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Problem(str(folder.record), f"is not JSON ({error})", "The run's record is damaged") from error
    if not isinstance(value, dict):
        raise Problem(str(folder.record), "holds no JSON object", "The run's record is damaged")
    return value


def check_unchanged(before: Mapping[str, str], now: Mapping[str, str], accepted: tuple[str, ...], where: str) -> None:
    """Stop where a fingerprint is not what it was, unless the change is accepted by name.

    Raises:
        Problem: names each changed input, with both fingerprints; or a name is accepted that is none.
    """
    names = sorted({*before, *now})
    for name in accepted:
        if name not in names:
            raise Problem(f"--accept {name}", "is no input of this run", nearest(name, names))
    changed = [name for name in names if before.get(name) != now.get(name) and name not in accepted]
    if not changed:
        return
    lines = [f"{name} (was {_short(before.get(name))}, is {_short(now.get(name))})" for name in changed]
    options = " ".join(f"--accept {name}" for name in changed)
    raise Problem(
        where,
        f"what the run reads has changed since it was started: {', '.join(lines)}",
        f"Put it back as it was, or accept the change by name: {options}",
    )


def _short(fingerprint: str | None) -> str:
    return fingerprint[:12] if fingerprint else "absent"
