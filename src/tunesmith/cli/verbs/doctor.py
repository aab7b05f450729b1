"""What of this machine and install works."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tunesmith.cli import screen

EPILOG = """\
Examples:

  tunesmith doctor
  tunesmith doctor --output report.txt

Exit status: 0 when training works here, 1 when something that it needs does
not. What is optional is only told."""

State = Literal["ok", "absent", "fault"]
STYLES: dict[State, str] = {"ok": "green", "absent": "dim", "fault": "bold red"}

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "datasets", "pydantic", "rich")
EXTRAS = {
    "deepspeed": ("deepspeed",),
    "modelscope": ("modelscope",),
    "quantize": ("bitsandbytes", "torchao"),
    "trackers": ("tensorboard",),
    "vllm": ("vllm",),
}
"""The extras of the package and what each brings."""

FREE_BYTES = 2_000_000_000
"""Less free disk than this is a fault: checkpoints would not fit."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: its state, what was found, and what to do about it."""

    name: str
    state: State
    what: str
    fix: str = ""


def doctor(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the findings to this file too, for a bug report.")
    ] = None,
) -> None:
    """Check what of this machine and install works, and name the exact fix for what does not."""
    lines: list[str] = []
    faults = 0
    for title, look in SECTIONS.items():
        screen.heading(title)
        lines.append(title)
        for finding in look():
            faults += finding.state == "fault"
            lines += _show(finding)
    screen.say()
    verdict = (
        "Training works here."
        if not faults
        else f"Not all that training needs works here: see the {faults} marked fault above."
    )
    screen.say(verdict, "bold green" if not faults else "bold red")
    if output is not None:
        output.write_text("\n".join([*lines, verdict]) + "\n", encoding="utf-8")
    raise typer.Exit(1 if faults else 0)


def _show(finding: Finding) -> list[str]:
    line = f"  {finding.state:<6}  {finding.name:<18}  {finding.what}"
    screen.say(line, STYLES[finding.state])
    if not finding.fix:
        return [line]
    screen.say(f"{'':30}{finding.fix}")
    return [line, f"{'':30}{finding.fix}"]


def _install() -> Iterator[Finding]:
    version = platform.python_version()
    known = (3, 11) <= sys.version_info[:2] <= (3, 13)
    fix = "" if known else "Make an environment with Python 3.11, 3.12 or 3.13"
    yield Finding("python", "ok" if known else "fault", f"{version} at {sys.executable}", fix)
    for name in LIBRARIES:
        yield _library(name)


def _library(name: str) -> Finding:
    found = _version(name)
    if found is None:
        return Finding(name, "fault", "is not installed", "pip install tunesmith")
    return Finding(name, "ok", found)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extras() -> Iterator[Finding]:
    for extra, packages in EXTRAS.items():
        found = {name: _version(name) for name in packages}
        there = ", ".join(f"{name} {version}" for name, version in found.items() if version)
        missing = ", ".join(name for name, version in found.items() if version is None)
        if not missing:
            yield Finding(extra, "ok", there)
        else:
            yield Finding(extra, "absent", f"without {missing}", f'pip install "tunesmith[{extra}]"')


def _machine() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    yield Finding("cpu", "ok", f"{_cores()} cores usable, {platform.machine()}")
    yield Finding("memory", "ok", f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f} GB")
    yield _disk("disk here", Path())
    yield from _torch()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _disk(name: str, folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    enough = free >= FREE_BYTES
    fix = "" if enough else "Free some space; checkpoints of a run need more"
    return Finding(name, "ok" if enough else "fault", f"{free / 1e9:.1f} GB free at {folder.resolve()}", fix)


def _torch() -> Iterator[Finding]:
    import_fault = _tried("torch", lambda: __import__("torch") and "")
    if import_fault.state == "fault":
        yield import_fault
        return
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            told = f"{torch.cuda.get_device_name(number)}, {free / 1e9:.1f} GB free of {total / 1e9:.1f} GB"
            yield Finding(f"gpu {number}", "ok", told)
    elif torch.backends.mps.is_available():
        yield Finding("gpu", "ok", "Apple GPU (mps)")
    else:
        built = torch.version.cuda or "no CUDA"
        yield Finding("gpu", "absent", f"none that this torch can use (it is built with {built}); the CPU is used")
    yield _tried("device and dtype", _choice)
    yield _tried("forward, backward", _one_step)


def _choice() -> str:
    from tunesmith.models.device import choose

    return "; ".join(choose("auto", "auto").reasons)


def _one_step() -> str:
    """One real step of a tiny model, on the device that a run would take."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunesmith.models.device import choose

    device = choose("auto", "auto").device
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    config.num_attention_heads = config.num_key_value_heads = 4
    config.head_dim = 8
    model: Any = LlamaForCausalLM(config)
    model = model.to(device)
    tokens = torch.arange(16, device=device).repeat(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses: list[float] = []
    for _ in range(2):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    if not losses[1] < losses[0]:
        raise RuntimeError(f"the loss went from {losses[0]:.3f} to {losses[1]:.3f} in a step that lowers it elsewhere")
    return f"a step on {device.type} lowers the loss from {losses[0]:.3f} to {losses[1]:.3f}"


def _tried(name: str, act: Callable[[], str]) -> Finding:
    """A finding from trying something, whatever it fails with: to tell that is what this verb is for."""
    try:
        return Finding(name, "ok", act())
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return Finding(
            name, "fault", f"{type(error).__name__}: {first}", "Install torch anew for this machine, then try again"
        )


def _places() -> Iterator[Finding]:
    caches = {
        "HF_HOME": Path("~/.cache/huggingface"),
        "MODELSCOPE_CACHE": Path("~/.cache/modelscope"),
        "TUNESMITH_CACHE": Path("~/.cache/tunesmith"),
    }
    for variable, usual in caches.items():
        yield _cache(variable, usual)
    for variable in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN"):
        value = os.environ.get(variable)
        hidden = "set (not shown)" if value and variable == "HF_TOKEN" else value
        yield Finding(variable, "ok" if value else "absent", hidden or "not set; the default is used")
    yield from _shipped_models()


def _cache(variable: str, usual: Path) -> Finding:
    value = os.environ.get(variable)
    folder = Path(value or usual).expanduser()
    above = folder
    while not above.exists():
        above = above.parent
    told = f"{folder} ({'as set' if value else 'the default'})"
    if not os.access(above, os.W_OK):
        return Finding(variable, "fault", f"{told} cannot be written", f"Set {variable} to a folder that can be")
    return Finding(variable, "ok", told)


def _shipped_models() -> Iterator[Finding]:
    from tunesmith import builtin

    for name in builtin.models():
        weights = sum(file.stat().st_size for file in builtin.path(name).glob("*.safetensors"))
        title = builtin.PREFIX + name
        if weights:
            yield Finding(title, "ok", f"{weights / 1e6:.1f} MB of weights")
        else:
            hint = "pip install --force-reinstall tunesmith"
            yield Finding(title, "fault", "its weights are not in this install", hint)


SECTIONS: dict[str, Callable[[], Iterator[Finding]]] = {
    "install": _install,
    "extras": _extras,
    "machine": _machine,
    "folders and hubs": _places,
}
