"""The verb: what it prints, the plan, the proof by transformers, the card, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from small_models import recipe, three
from transformers import AutoModelForCausalLM

from tunesmith.cli import __main__ as entry
from tunesmith.merge import proof

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line; its status, standard output and standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tunesmith", "merge", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            sys.exit(entry.main())
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out, told.err

    return run


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models, and a recipe of four layers from their three."""
    where = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("one", "two")):
        tiny.folder(where / name, "qwen3", seed=seed)
    parts = [("one", [0, 2]), ("two", [1, 3])]
    slices = [{"sources": [{"model": name, "layer_range": span}]} for name, span in parts]
    recipe(where, {"merge_method": "passthrough", "slices": slices, "chat_template": "chatml"})
    return where


def test_a_merge_is_proven_and_its_card_says_what_it_is(folders: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "stack"
    status, told, _ = call(folders / "recipe.yaml", out)
    assert status == 0
    assert "transformers loads it; logits are finite on 6 prompts" in told and f"tunesmith chat {out}" in told
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.config.num_hidden_layers == 4 and len(loaded.config.layer_types) == 4
    weights = tiny.tensors(out)
    assert torch.equal(
        weights["model.layers.3.mlp.up_proj.weight"], tiny.tensors(folders / "two")["model.layers.2.mlp.up_proj.weight"]
    )
    card = (out / "README.md").read_text()
    for file in (folders / "one" / "model.safetensors", out / "model.safetensors"):
        assert hashlib.sha256(file.read_bytes()).hexdigest() in card
    assert "layer_range" in card and "chatml" in card
    assert json.loads((out / "merge.json").read_text())["method"] == "passthrough"
    assert "<|im_start|>" in (out / "chat_template.jinja").read_text()


def test_the_plan_writes_nothing(folders: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "stack"
    status, told, _ = call(folders / "recipe.yaml", out, "--plan")
    assert status == 0
    assert "passthrough of 2 models" in told and "4 layers, float32" in told and "free" in told
    size = sum(file.stat().st_size for file in (folders / "one").glob("*.safetensors"))
    assert f"{size / 1e6:,.1f} MB" in told
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_transformers_cannot_use_is_not_kept(
    folders: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    three(tmp_path)
    value = {"merge_method": "linear", "models": [{"model": "m0"}, {"model": "m1"}], "parameters": {"weight": 1}}
    status, _, told = call(recipe(tmp_path, value), tmp_path / "out")
    assert status == 2 and "Traceback" not in told
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(proof, "PROMPTS", ("a",))
    with torch.no_grad():
        broken = AutoModelForCausalLM.from_pretrained(folders / "one")
        broken.model.norm.weight.fill_(3e38)
        broken.save_pretrained(tmp_path / "broken")
    tiny._tokenizer("chatml").save_pretrained(tmp_path / "broken")
    file = recipe(tmp_path, {"merge_method": "passthrough", "models": [{"model": "broken"}]})
    status, _, told = call(file, tmp_path / "out")
    assert status == 2 and "not finite" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["", "5", "big", "0MB", "-1GB", "1.5GB"])
def test_a_size_that_is_none_is_refused(size: str, tmp_path: Path, call: Call) -> None:
    status, _, told = call(tmp_path / "recipe.yaml", tmp_path / "out", f"--shard-size={size}")
    assert status == 2 and "--shard-size" in told


def test_a_recipe_that_is_not_there(tmp_path: Path, call: Call) -> None:
    status, _, told = call(tmp_path / "recipe.yaml", tmp_path / "out")
    assert status == 2 and "cannot be read" in told
    assert list(tmp_path.iterdir()) == []
