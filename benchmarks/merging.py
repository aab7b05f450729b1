"""Merging against mergekit: CPU seconds, wall seconds and peak memory of whole processes, alternately, as medians.

    python benchmarks/merging.py [--mergekit PYTHON] [--methods linear slerp ties] [--repeats 3]

It makes three random checkpoints of about 540 MB in bfloat16 (16 layers of width 1024, 32,000 tokens), and, unless the
Python of an environment that has mergekit is given, such an environment. All of it goes away at the end.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from tunesmith import builtin
from tunesmith.core.rundir import write_json

WIDTH, INNER, LAYERS, TOKENS = 1024, 2816, 16, 32_000
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": TOKENS,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
MODELS = {
    "linear": "models:\n{listed}merge_method: linear\nparameters: {{weight: 0.4}}\ndtype: bfloat16\n",
    "slerp": "models:\n{two}merge_method: slerp\nbase_model: {base}\nparameters: {{t: 0.4}}\ndtype: bfloat16\n",
    "ties": (
        "models:\n{others}merge_method: ties\nbase_model: {base}\n"
        "parameters: {{weight: 0.5, density: 0.6}}\ndtype: bfloat16\n"
    ),
}
"""The recipes by method."""


@dataclass(frozen=True)
class Cost:
    """What a process took: CPU and wall seconds, and its peak memory in MB."""

    cpu: float
    wall: float
    memory: float


def shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of the checkpoints."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (TOKENS, WIDTH)}
    for number in range(LAYERS):
        layer = f"model.layers.{number}"
        found |= {f"{layer}.self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"}
        found |= {f"{layer}.mlp.{name}_proj.weight": (INNER, WIDTH) for name in ("gate", "up")}
        found[f"{layer}.mlp.down_proj.weight"] = (WIDTH, INNER)
        found |= {f"{layer}.{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    return found | {"model.norm.weight": (WIDTH,), "lm_head.weight": (TOKENS, WIDTH)}


def checkpoint(folder: Path, seed: int) -> None:
    """A random checkpoint: the same base for all, and a change of a tenth of its size for each."""
    import torch
    from safetensors.torch import save_file

    base, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed + 1)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in shapes().items():
        value = torch.randn(shape, generator=base) + 0.1 * torch.randn(shape, generator=own)
        tensors[name] = (1 + 0.1 * value if len(shape) == 1 else 0.02 * value).bfloat16()
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", CONFIG)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(builtin.path("seedling") / file, folder / file)


def recipe(method: str, folders: Sequence[Path], file: Path) -> Path:
    """A recipe that both read."""
    lines = [f"- model: {folder}\n" for folder in folders]
    parts = {"listed": "".join(lines), "two": "".join(lines[:2]), "others": "".join(lines[1:]), "base": folders[0]}
    file.write_text(MODELS[method].format(**parts))
    return file


def measured(command: Sequence[str], log: Path) -> Cost:
    """Run a command to its end; its cost includes its start.

    Raises:
        RuntimeError: it failed.
    """
    began = time.perf_counter()
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text()[-3000:]}")
    return Cost(usage.ru_utime + usage.ru_stime, time.perf_counter() - began, usage.ru_maxrss / 1024)


def median(costs: Sequence[Cost]) -> Cost:
    """The median of each figure."""
    return Cost(*(statistics.median(getattr(cost, name) for cost in costs) for name in ("cpu", "wall", "memory")))


def environment(folder: Path) -> str:
    """A new environment with mergekit; its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "mergekit==0.1.5"], check=True)
    return python


def compare(method: str, place: Path, folders: Sequence[Path], mergekit: str, repeats: int) -> None:
    """Run each in turn, and print one row a contestant."""
    file = recipe(method, folders, place / f"{method}.yaml")
    out = place / "out"
    ours = [sys.executable, "-m", "tunesmith", "merge", str(file), str(out)]
    theirs = [str(Path(mergekit).parent / "mergekit-yaml"), str(file), str(out)]
    contestants = {"mergekit": theirs, "tunesmith": [*ours, "--proof", "files"], "tunesmith, full proof": ours}
    costs: dict[str, list[Cost]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, command in contestants.items():
            costs[name].append(measured(command, place / "log"))
            shutil.rmtree(out)
    base = median(costs["mergekit"])
    for name, found in costs.items():
        cost = median(found)
        figures = f"{cost.cpu:.2f} | {cost.wall:.2f} | {cost.memory:.0f}"
        ratios = f"{cost.cpu / base.cpu:.3f} | {cost.wall / base.wall:.3f} | {cost.memory / base.memory:.3f}"
        print(f"| {method} | {name} | {figures} | {ratios} |", flush=True)


def heading(repeats: int) -> str:
    """Date, machine and how busy it is, and the head of a Markdown table."""
    busy = f"load {os.getloadavg()[0]:.1f} at the start"
    about = f"{date.today()}, {processor()}, {os.cpu_count()} cores, {busy}, median of {repeats}"
    columns = ("method", "", "CPU s", "wall s", "MB", "CPU ratio", "wall ratio", "MB ratio")
    return f"{about}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}"


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def main() -> None:
    """Make the checkpoints, run every method, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mergekit", help="the Python of an environment with mergekit; by default one is made")
    parser.add_argument("--methods", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        for number in range(3):
            checkpoint(options.make / f"model{number}", number)
        return
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        folders = [place / f"model{number}" for number in range(3)]
        # In a process of its own: what a process holds when it starts another counts as that one's peak memory.
        subprocess.run([sys.executable, __file__, "--make", str(place)], check=True)
        mergekit = options.mergekit or environment(place / "env")
        print(heading(options.repeats), flush=True)
        for method in options.methods:
            compare(method, place, folders, mergekit, options.repeats)


if __name__ == "__main__":
    main()
