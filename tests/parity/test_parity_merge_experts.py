"""Mixtures of experts against mergekit-moe 0.1.5: every router, expert and shared tensor.

mergekit writes the experts of a layer as one tensor, joined as transformers holds them; here each has its own, so they
are joined before they are compared. mergekit pads prompts and lets the padding into the mean of `hidden_avg`: the
prompts of that case are equally long.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from mergekit_oracle import ask

from tunesmith.merge.verb import merge

FAMILIES = ("qwen3", "llama", "qwen2")
PROMPTS: list[dict[str, Any]] = [
    {"positive_prompts": ["what is rain?", "what is an oak that paddles?"], "negative_prompts": ["chess"]},
    {"positive_prompts": ["the end of jazz"], "residual_scale": 0.5},
]
EVEN: list[dict[str, Any]] = [{"positive_prompts": ["what is rain?"]}, {"positive_prompts": ["what is tin?"]}]
SHARED: list[dict[str, Any]] = [{"source_model": "0", "positive_prompts": ["salt"], "residual_scale": 0.1}]

CASES: dict[str, dict[str, Any]] = {
    "qwen3-hidden": {"gate_mode": "hidden"},
    "qwen3-hidden_avg": {"gate_mode": "hidden_avg", "prompts": EVEN},
    "qwen3-cheap_embed": {"gate_mode": "cheap_embed"},
    "llama-hidden": {"gate_mode": "hidden", "experts_per_token": 1},
    "llama-cheap_embed": {"gate_mode": "cheap_embed", "dtype": "bfloat16"},
    "qwen2-hidden": {"gate_mode": "hidden", "shared_experts": SHARED},
    "qwen2-cheap_embed": {"gate_mode": "cheap_embed", "shared_experts": SHARED},
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    for family in FAMILIES:
        for number in range(3):
            tiny.folder(folder / f"{family}-{number}", family, seed=number)
    (folder / "experts").mkdir()
    for name, case in CASES.items():
        (folder / "experts" / f"{name}.yaml").write_text(yaml.safe_dump(recipe(folder, name, dict(case))))
    ask(folder)
    return folder


def recipe(folder: Path, name: str, case: dict[str, Any]) -> dict[str, Any]:
    family = folder / name.partition("-")[0]
    experts = [
        {"source_model": f"{family}-{number}", **prompts}
        for number, prompts in enumerate(case.pop("prompts", PROMPTS), start=1)
    ]
    shared = [{**expert, "source_model": f"{family}-0"} for expert in case.pop("shared_experts", ())]
    value = {"base_model": f"{family}-0", "experts": experts, "dtype": "float32", **case}
    return {**value, "shared_experts": shared} if shared else value


def joined(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts with tensors of their own as transformers holds them: gate over up, one expert after the other."""
    out: dict[str, torch.Tensor] = {}
    names = {"gate": ("gate_proj", "w1"), "up": ("up_proj", "w3"), "down": ("down_proj", "w2")}
    parts: dict[str, dict[str, dict[int, torch.Tensor]]] = {}
    for name, value in found.items():
        block, mark, rest = name.partition(".experts.")
        if not mark or ".weight" not in rest:
            out[name.replace(".block_sparse_moe.", ".mlp.")] = value
            continue
        number, part, _ = rest.split(".")
        kind = next(kind for kind, known in names.items() if part in known)
        parts.setdefault(block.replace("block_sparse_moe", "mlp"), {}).setdefault(kind, {})[int(number)] = value
    for block, held in parts.items():
        count = range(len(held["gate"]))
        out[f"{block}.experts.gate_up_proj"] = torch.stack([torch.cat([held["gate"][n], held["up"][n]]) for n in count])
        out[f"{block}.experts.down_proj"] = torch.stack([held["down"][n] for n in count])
    return out


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_is_mergekits(name: str, mixed: Path, tmp_path: Path) -> None:
    ours = joined(tiny.tensors(merge(mixed / "experts" / f"{name}.yaml", tmp_path / "out").folder))
    theirs = joined(tiny.tensors(mixed / "mixed" / name))
    routers = {key for key in theirs if key.endswith("gate.weight")}
    assert ours.keys() == theirs.keys()
    assert len(routers) == (6 if name.startswith("qwen2") else 3)
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype
        if key in routers:
            spread = 4e-3 if value.dtype == torch.bfloat16 else 2e-6
            assert torch.allclose(ours[key].float(), value.float(), atol=spread, rtol=spread), key
            assert value.float().norm() > 0.5
        else:
            assert torch.equal(ours[key], value), key
