"""A folded model is base and adapter, to rounding, or there is no folded model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tunesmith.core.problem import Problem
from tunesmith.merge import lowrank
from tunesmith.merge.fold import fold
from tunesmith.train.verb import Result

TOKENS = torch.arange(3, 43).reshape(2, 20)
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "plain": ("sft", "llama", {}, {}),
    "rank-stabilized": ("sft", "llama", {"scaling": "rank_stabilized", "rank": 16}, {}),
    "dora": ("sft", "llama", {"form": "dora"}, {}),
    "pissa": ("sft", "llama", {"start": "pissa", "rank": 4}, {}),
    "olora": ("sft", "llama", {"start": "olora", "rank": 4}, {}),
    "some-layers": ("sft", "qwen3", {"targets": ["q_proj", "down_proj"]}, {}),
    "transposed": ("sft", "gpt2", {}, {}),
    "transposed-dora": ("sft", "gpt2", {"form": "dora"}, {}),
    "transposed-pissa": ("sft", "gpt2", {"start": "pissa", "rank": 4}, {}),
    "tied": ("sft", "gemma2", {}, {"tie_word_embeddings": True}),
    "experts": ("sft", "qwen3_moe", {}, {}),
    "shards": ("sft", "llama", {}, {"shards": "20KB"}),
    "score": ("reward", "llama", {}, {}),
    "score-gpt2": ("reward", "gpt2", {"form": "dora"}, {}),
    "pairs": ("dpo", "phi3", {}, {}),
}


def run(case: str, where: Path) -> tuple[Path, Result]:
    objective, family, options, base_options = CASES[case]
    base = tiny.folder(where / "base", family, **base_options)
    settings: dict[str, Any] = {"optimizer": {"adamw": {"lr": 1e-2}}, "train": {"schedule": "constant"}}
    return base, tiny.trained(base, where, objective, method={"lora": options}, **settings)


def kind_of(case: str) -> Any:
    return AutoModelForSequenceClassification if case.startswith("score") else AutoModelForCausalLM


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits.float()


def with_adapter(case: str, base: Path, adapter: Path, **options: Any) -> PeftModel:
    more = {"num_labels": 1} if case.startswith("score") else {}
    return PeftModel.from_pretrained(kind_of(case).from_pretrained(base, **more, **options), str(adapter))


def size(values: Tensor) -> float:
    return float(values.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_folded_is_base_and_adapter(case: str, tmp_path: Path) -> None:
    """Against PEFT's own model, and its own merge, weight by weight."""
    base, result = run(case, tmp_path)
    done = fold(str(result.folder.path))
    theirs = with_adapter(case, base, result.folder.model)
    expected = logits(theirs)
    untouched = logits(kind_of(case).from_pretrained(base, **({"num_labels": 1} if "score" in case else {})))
    ours = kind_of(case).from_pretrained(done.folder)
    assert size(logits(ours) - expected) <= 2e-5 * size(expected)
    assert size(untouched - expected) > 1e-2 * size(expected)
    merged = theirs.merge_and_unload().state_dict()
    assert ours.state_dict().keys() == merged.keys()
    for name, value in ours.state_dict().items():
        assert size(value - merged[name]) <= 1e-5 * max(size(merged[name]), 1e-3), name
    assert done.difference <= 2e-5
    assert done.prompts >= 5


@pytest.mark.parametrize("case", ["plain", "dora", "transposed", "score"])
def test_a_base_in_bfloat16_is_folded_in_float32_and_rounded_once(case: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    objective, family, options, _ = CASES[case]
    tiny.folder(base, family)
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    settings: dict[str, Any] = {"optimizer": {"adamw": {"lr": 1e-2}}, "train": {"schedule": "constant"}}
    result = tiny.trained(base, tmp_path, objective, method={"lora": options}, **settings)
    done = fold(str(result.folder.path))
    assert done.dtype == "bfloat16"
    theirs = with_adapter(case, base, result.folder.model, dtype=torch.float32)
    expected = theirs.merge_and_unload().state_dict()
    found = tiny.tensors(done.folder)
    assert {value.dtype for value in found.values()} == {torch.bfloat16}
    for name, value in found.items():
        assert (value.float() - expected[name]).abs().max() <= size(expected[name]) * 2**-8, name
        if "lora" not in name and value.ndim > 1:
            rounded = expected[name].bfloat16()
            assert (value == rounded).float().mean() > 0.99, name
    exact = fold(str(result.folder.path), tmp_path / "exact", "float32")
    assert exact.difference <= 2e-5
    assert {value.dtype for value in tiny.tensors(exact.folder).values()} == {torch.float32}


def test_the_tokenizer_and_template_come_along(tmp_path: Path) -> None:
    _, result = run("plain", tmp_path)
    done = fold(str(result.folder.path))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "base")
    ours = AutoTokenizer.from_pretrained(done.folder)
    chat = [{"role": "user", "content": "Hello, who are you?"}]
    assert ours.apply_chat_template(chat) == theirs.apply_chat_template(chat)
    assert json.loads((done.folder / "tokenizer_config.json").read_text("utf-8"))["tokenizer_class"] != (
        "TokenizersBackend"
    )


def test_a_sharded_base_stays_sharded(tmp_path: Path) -> None:
    base, result = run("shards", tmp_path)
    done = fold(str(result.folder.path))
    names = {file.name for file in base.glob("*.safetensors")}
    assert len(names) > 2
    assert {file.name for file in done.folder.glob("*.safetensors")} == names
    index = json.loads((done.folder / "model.safetensors.index.json").read_text("utf-8"))
    assert set(index["weight_map"].values()) == names


@pytest.mark.parametrize("case", ["plain", "dora", "transposed"])
def test_a_wrong_fold_is_refused_and_removed(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, result = run(case, tmp_path)
    own = lowrank.Change.apply

    def apply(self: lowrank.Change, weight: Tensor) -> Tensor:
        return own(self, weight) if self.value is not None else 2 * own(self, weight) - weight.float()

    monkeypatch.setattr(lowrank.Change, "apply", apply)
    with pytest.raises(Problem, match="differ from base \\+ adapter"):
        fold(str(result.folder.path))
    assert not [path.name for path in result.folder.path.iterdir() if "folded" in path.name]


def test_what_cannot_be_folded_is_refused(tmp_path: Path) -> None:
    base, result = run("plain", tmp_path)
    with pytest.raises(Problem, match="plain weights"):
        fold(str(base))
    done = fold(str(result.folder.path))
    with pytest.raises(Problem, match="exists already"):
        fold(str(result.folder.path))
    assert done.folder.is_dir()
    with pytest.raises(Problem, match="no number type"):
        fold(str(result.folder.path), tmp_path / "other", "int8")


def test_a_folded_model_can_be_trained_again(tmp_path: Path) -> None:
    _, result = run("plain", tmp_path)
    done = fold(str(result.folder.path))
    again = tiny.trained(done.folder, tmp_path, output="again")
    assert tiny.losses(again)[0] < tiny.losses(result)[0]
