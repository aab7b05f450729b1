"""Merging against mergekit: CPU seconds, wall seconds and peak memory of whole processes, alternately, as medians.

    python benchmarks/merging.py [--methods linear slerp ties] [--repeats 3]

It makes three random checkpoints of about 540 MB in bfloat16 (16 layers of width 1024, 32,000 tokens), which go away at
the end.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.rounds import alternate
from bench.side import Side
from bench.table import Column, Group
from bench.training import command, show

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
RECIPES = {
    "linear": "models:\n{listed}merge_method: linear\nparameters: {{weight: 0.4}}\ndtype: bfloat16\n",
    "slerp": "models:\n{two}merge_method: slerp\nbase_model: {base}\nparameters: {{t: 0.4}}\ndtype: bfloat16\n",
    "ties": (
        "models:\n{others}merge_method: ties\nbase_model: {base}\n"
        "parameters: {{weight: 0.5, density: 0.6}}\ndtype: bfloat16\n"
    ),
}
"""By method; both programs read them."""
COLUMNS = [
    Column("cpu", "CPU s", "CPU 秒", 2),
    Column("cpu", "ratio", "比值", 2, ratio=True),
    Column("wall", "wall s", "实际秒", 1),
    Column("memory", "peak MB", "内存峰值 MB", 0),
    Column("memory", "ratio", "比值", 2, ratio=True),
]


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

    from tunesmith import builtin
    from tunesmith.core.rundir import write_json

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
    file.write_text(RECIPES[method].format(**parts))
    return file


def compare(method: str, place: Path, folders: Sequence[Path], repeats: int) -> Group:
    """Run each in turn; results are written into the folder of the side's process, which goes away with it."""
    file = str(recipe(method, folders, place / f"{method}.yaml"))
    ours = ["-m", "tunesmith", "merge", file, "out"]
    theirs = ["-m", "mergekit.scripts.run_yaml", file, "out"]
    work = "bench.commands:run"
    sides = [
        Side("tunesmith, proof of files", work, {"arguments": [*ours, "--proof", "files"]}),
        Side("tunesmith, full proof", work, {"arguments": ours}),
        Side("mergekit", work, {"arguments": theirs}, "peer", "mergekit"),
    ]
    said = f"{method}: three checkpoints of 542 MB in bfloat16, whole processes."
    said_zh = f"{method}：三个 542 MB 的 bfloat16 检查点，整个进程。"
    return Group(method, said, said_zh, COLUMNS, alternate(sides, repeats), command=command())


def main() -> None:
    """Make the checkpoints, run every method, print a table each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--methods", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="print the tables, and keep the figures that are kept")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        place = Path(scratch)
        folders = [place / f"model{number}" for number in range(3)]
        for number, folder in enumerate(folders):
            checkpoint(folder, number)
        for method in asked.methods:
            show("merging", compare(method, place, folders, asked.repeats), asked)


if __name__ == "__main__":
    main()
