"""mergekit's answers, computed by its own Python: run as a script there, asked from the tests here.

    FOLDER/cases.json, FOLDER/inputs.safetensors ─▶ FOLDER/outputs.safetensors      tensors, one case each
    FOLDER/recipes/NAME.yaml                     ─▶ FOLDER/merged/NAME/             whole models
    FOLDER/experts/NAME.yaml                     ─▶ FOLDER/mixed/NAME/              mixtures of experts

The variable MERGEKIT_PYTHON names a Python in whose environment mergekit 0.1.5 is installed; without it the tests skip.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def ask(folder: Path) -> None:
    """Let mergekit do what lies in the folder; skip where there is none."""
    import pytest

    python = os.environ.get("MERGEKIT_PYTHON")
    if not python or not Path(python).is_file():
        pytest.skip("MERGEKIT_PYTHON names no Python with mergekit 0.1.5")
    surroundings = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    surroundings.pop("PYTHONPATH", None)
    done = subprocess.run(
        [python, __file__, str(folder)], capture_output=True, text=True, env=surroundings, check=False
    )
    if done.returncode:
        raise RuntimeError(f"mergekit failed:\n{done.stderr[-4000:]}")


def main(folder: Path) -> None:
    """Answer everything in the folder."""
    import importlib.metadata

    assert importlib.metadata.version("mergekit") == "0.1.5"
    if (folder / "cases.json").is_file():
        merge_tensors(folder)
    for recipe in sorted(folder.glob("recipes/*.yaml")):
        merge_models(recipe, folder / "merged" / recipe.stem)
    for recipe in sorted(folder.glob("experts/*.yaml")):
        mix_models(recipe, folder / "mixed" / recipe.stem)


def merge_tensors(folder: Path) -> None:
    """Each case of cases.json: {name, method, parameters, tensors, base: number or null, dtype}."""
    import torch
    from mergekit.merge_methods import merge_tensors as merge
    from safetensors.torch import load_file, save_file

    inputs = load_file(folder / "inputs.safetensors")
    found: dict[str, Any] = {}
    for number, case in enumerate(json.loads((folder / "cases.json").read_text())):
        torch.manual_seed(number)
        merged = merge(
            [inputs[name] for name in case["tensors"]],
            case["method"],
            parameters=case["parameters"],
            base_index=case["base"],
            dtype=getattr(torch, case["dtype"]),
        )
        found[case["name"]] = merged.clone(memory_format=torch.contiguous_format)
    save_file(found, folder / "outputs.safetensors")


def merge_models(recipe: Path, out: Path) -> None:
    """Merge by a recipe; what mergekit raises stands in FAULT beside what it wrote."""
    import torch
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    torch.manual_seed(0)
    config = MergeConfiguration.model_validate(yaml.safe_load(recipe.read_text()))
    options = MergeOptions(lora_merge_cache=str(out.parent / "adapters"), quiet=True)
    run_merge(config, str(out), options)


def mix_models(recipe: Path, out: Path) -> None:
    """Make a mixture of experts; prompts are run in float32, so that rounding to bfloat16 hides nothing."""
    import torch
    import yaml
    from mergekit.moe import router
    from mergekit.moe.config import MoEMergeConfig
    from mergekit.options import MergeOptions
    from mergekit.scripts.moe import build

    load = router.AutoModelForCausalLM.from_pretrained
    router.AutoModelForCausalLM.from_pretrained = lambda *names, **options: load(
        *names, **{**options, "torch_dtype": torch.float32}
    )
    try:
        build(MoEMergeConfig.model_validate(yaml.safe_load(recipe.read_text())), str(out), MergeOptions(quiet=True))
    finally:
        router.AutoModelForCausalLM.from_pretrained = load


if __name__ == "__main__":
    main(Path(sys.argv[1]))
