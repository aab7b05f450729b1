"""Sides of the start: a command to its end, and a run to its first step."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.ours import run_of
from bench.work import Clock, cpu_seconds


class Begun(BaseException):
    """The first step begins; told with the CPU seconds of the process until then."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu = cpu_seconds()


def command(settings: dict[str, Any]) -> dict[str, Any]:
    """A Python command in a process of its own, from its beginning to its end; settings: `arguments`."""
    clock = Clock()
    with clock:
        subprocess.run([sys.executable, *settings["arguments"]], check=True, stdout=subprocess.DEVNULL)
    return {**clock.figures, "memory": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6}


def ours(settings: dict[str, Any]) -> dict[str, Any]:
    """`tunesmith train` until its first step begins; what it validates before that is counted."""
    from tunesmith.cli import __main__ as tunesmith
    from tunesmith.cli import imports

    imports.models()
    from tunesmith.train.loop import Loop

    Loop._one_step = _begun  # type: ignore[method-assign]
    file = Path("run.yaml")
    file.write_text(json.dumps(run_of({"learns": "lora", **settings}, "rows", Path("run"))))
    sys.argv = ["tunesmith", "train", str(file)]
    return _until(tunesmith.main)


def peer(settings: dict[str, Any]) -> dict[str, Any]:
    """Another program until its trainer says that training begins; settings: `program`, and those of its side."""
    import importlib

    from peers.watch import Watch

    Watch.on_train_begin = _begun  # type: ignore[method-assign]
    module = importlib.import_module(settings["program"])
    return _until(lambda: module.train(settings))


def _begun(*_: object, **__: object) -> bool:
    raise Begun


def _until(act: Any) -> dict[str, Any]:
    try:
        act()
    except Begun as begun:
        return {"cpu": begun.cpu}
    raise RuntimeError("no step was begun")
