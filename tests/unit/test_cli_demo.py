"""The main job by its verbs, on a tiny model: demo, then chat, evaluate, resume and view on what it made."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith import builtin
from tunesmith.cli import __main__ as entry

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with the shipped tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    for file in builtin.path("seedling").iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copy(file, folder)
    size = len(json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]) + 8
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tunesmith", *words])
        with pytest.raises(SystemExit) as end:
            sys.exit(entry.main())
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out, told.err

    return run


def test_the_main_job(tiny: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, told, _ = call("demo", "--model", str(tiny), "--steps", "2", "--output", "demo")
    assert status == 0
    assert "\x1b" not in told and "\r" not in told
    for word in ("accuracy", "macro-F1", "majority class", "n-gram", "logits agree", "What to do next"):
        assert word in told
    for name in ("identity", "reviews"):
        assert (tmp_path / "demo" / name / "plots" / "loss.png").stat().st_size > 1000
    assert (tmp_path / "demo" / "identity" / "folded" / "model.safetensors").is_file()
    assert (tmp_path / "demo" / "reviews" / "evaluation" / "results.json").is_file()
    assert call("demo", "--output", "demo")[0] == 2
    _goes_on(call)


def _goes_on(call: Call) -> None:
    """What the demo says to do next works on what it made."""
    status, told, _ = call("chat", "demo/identity", "--against", "--prompt", "Who are you?", "--max-tokens", "3")
    assert status == 0
    assert [line.partition(":")[0] for line in told.splitlines() if ": " in line] == ["base", "tuned"]
    status, told, _ = call("data", "view", "--run", "demo/reviews", "--row", "1")
    assert status == 0
    assert "learned" in told
    assert "has ended" in call("resume", "demo/reviews")[2]
    status, _, error = call("fold", "demo/identity")
    assert (status, "exists" in error) == (2, True)
