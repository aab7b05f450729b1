"""Model folders of a few small tensors under the names of a Llama, and recipes over them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

WIDTH, TOKENS = 8, 24
PARTS = {
    "self_attn.q_proj.weight": (WIDTH, WIDTH),
    "mlp.up_proj.weight": (2 * WIDTH, WIDTH),
    "input_layernorm.weight": (WIDTH,),
}

Tensors = dict[str, torch.Tensor]


def tensors(seed: int, layers: int = 3, *, tied: bool = False, dtype: torch.dtype = torch.float32) -> Tensors:
    """Random tensors of a small decoder."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (TOKENS, WIDTH), "model.norm.weight": (WIDTH,)}
    shapes |= {f"model.layers.{n}.{part}": shape for n in range(layers) for part, shape in PARTS.items()}
    shapes |= {} if tied else {"lm_head.weight": (TOKENS, WIDTH)}
    return {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in shapes.items()}


def model(folder: Path, held: Mapping[str, torch.Tensor], *, shards: int = 1, **config: Any) -> Path:
    """Write tensors as a model's folder."""
    folder.mkdir(parents=True)
    layers = len({name.split(".")[2] for name in held if ".layers." in name})
    tied = "lm_head.weight" not in held
    about = {"model_type": "llama", "num_hidden_layers": layers, "tie_word_embeddings": tied, **config}
    (folder / "config.json").write_text(json.dumps(about))
    names = sorted(held)
    groups = [names[number::shards] for number in range(shards)]
    files = [f"model-{n:05}-of-{shards:05}.safetensors" for n in range(1, shards + 1)]
    for file, group in zip(files if shards > 1 else ["model.safetensors"], groups, strict=True):
        save_file({name: held[name].contiguous() for name in group}, folder / file, metadata={"format": "pt"})
    if shards > 1:
        where = {name: file for file, group in zip(files, groups, strict=True) for name in group}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def three(where: Path, **options: Any) -> list[Tensors]:
    """Models m0, m1, m2 in a folder, and their tensors."""
    made = [tensors(seed, **options) for seed in range(3)]
    for number, held in enumerate(made):
        model(where / f"m{number}", held)
    return made


def recipe(where: Path, value: Any, name: str = "recipe.yaml") -> Path:
    """A recipe's file; names of models that are folders there become paths."""
    file = where / name
    text = value if isinstance(value, str) else yaml.safe_dump(_placed(value, where), sort_keys=False)
    file.write_text(text)
    return file


def _placed(value: Any, where: Path) -> Any:
    if isinstance(value, dict):
        return {key: _placed(part, where) for key, part in value.items()}
    if isinstance(value, list):
        return [_placed(part, where) for part in value]
    if isinstance(value, str) and (where / value.partition("+")[0] / "config.json").is_file():
        return "+".join(str(where / part) for part in value.split("+"))
    return value


def read(folder: Path) -> Tensors:
    """All tensors of a merged folder."""
    return {name: held for file in sorted(folder.glob("*.safetensors")) for name, held in load_file(file).items()}
