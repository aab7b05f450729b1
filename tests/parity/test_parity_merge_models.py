"""Whole models merged by recipes, against mergekit 0.1.5: gradients, filters, slices, adapters, tokenizers.

Each recipe is merged twice. Summed in float64 and rounded to float32, every weight is equal to one unit in the last
place; summed in float32 and rounded to bfloat16 as well. Embeddings of united vocabularies are compared token by token,
since mergekit numbers new tokens in the order of a hash table.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from mergekit_oracle import ask
from peft import LoraConfig, get_peft_model
from test_parity_merge_methods import units
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.core.plugins import find
from tunesmith.merge.methods import MergeMethod
from tunesmith.merge.verb import How, merge

TYPES = {"exact": ("float64", "float32"), "usual": ("float32", "bfloat16")}
"""What is summed in, and what is written."""

FILTERS = [{"filter": "self_attn", "value": [0.0, 0.5, 1.0]}, {"filter": "mlp", "value": [1.0, 0.3]}, {"value": 0.4}]
NORMS = [{"filter": "norm", "value": 0.9}, {"filter": "embed", "value": 0.1}, {"value": [0.2, 0.7]}]


def models(*names: str, **each: Any) -> list[dict[str, Any]]:
    """The models of a recipe; each: a value a model by the option's name."""
    values = [{name: value[number] for name, value in each.items()} for number in range(len(names))]
    return [
        {"model": name, "parameters": part} if part else {"model": name}
        for name, part in zip(names, values, strict=True)
    ]


def layers(*parts: tuple[str, int, int], **parameters: Any) -> dict[str, Any]:
    """A slice."""
    sources = [{"model": name, "layer_range": [first, end]} for name, first, end in parts]
    return {"sources": sources, **({"parameters": parameters} if parameters else {})}


RECIPES: dict[str, dict[str, Any]] = {
    "llama-linear": {
        "merge_method": "linear",
        "models": models("llama-0", "llama-1", "llama-2", weight=[FILTERS, 0.3, NORMS]),
    },
    "mistral-slerp": {
        "merge_method": "slerp",
        "base_model": "mistral-0",
        "slices": [layers(("mistral-0", 0, 3), ("mistral-1", 0, 3))],
        "parameters": {"t": FILTERS},
    },
    "qwen2-ties": {
        "merge_method": "ties",
        "base_model": "qwen2-0",
        "models": models("qwen2-1", "qwen2-2", weight=[0.6, [0.2, 0.9]], density=[[0.9, 0.3], 0.5]),
        "parameters": {"normalize": True, "int8_mask": True},
    },
    "qwen3-model_stock": {
        "merge_method": "model_stock",
        "base_model": "qwen3-0",
        "models": models("qwen3-0", "qwen3-1", "qwen3-2"),
    },
    "qwen3-karcher": {"merge_method": "karcher", "models": models("qwen3-0", "qwen3-1", "qwen3-2")},
    "llama-passthrough": {
        "merge_method": "passthrough",
        "slices": [
            layers(("llama-0", 0, 2)),
            layers(("llama-1", 1, 3), scale=[{"filter": "o_proj", "value": 0.0}, {"filter": "down", "value": [1, 2]}]),
            layers(("llama-0", 0, 3)),
        ],
    },
    "llama-adapter": {
        "merge_method": "task_arithmetic",
        "base_model": "llama-0",
        "models": models("llama-0+adapter", "llama-1", weight=[0.5, 0.8]),
        "parameters": {"lambda": [0.5, 1.5]},
    },
    "mistral-breadcrumbs": {
        "merge_method": "breadcrumbs_ties",
        "base_model": "mistral-0",
        "slices": [
            layers(("mistral-0", 0, 2), ("mistral-1", 1, 3), ("mistral-2", 0, 2), weight=[0.3, 0.8]),
            layers(("mistral-0", 1, 3), ("mistral-1", 0, 2), ("mistral-2", 1, 3), weight=0.5, density=0.4),
        ],
        "parameters": {"density": 0.7, "gamma": 0.05},
    },
    "tokens-union": {
        "merge_method": "linear",
        "models": models("words-0", "words-1", "words-2", weight=[0.5, 0.2, 0.3]),
        "tokenizer_source": "union",
        "base_model": "words-0",
    },
    "tokens-base": {
        "merge_method": "task_arithmetic",
        "models": models("words-1", "words-2", weight=[0.4, 0.3]),
        "tokenizer_source": "base",
        "base_model": "words-0",
    },
    "tokens-model": {
        "merge_method": "slerp",
        "base_model": "words-0",
        "models": models("words-0", "words-1"),
        "parameters": {"t": 0.3},
        "tokenizer_source": "words-1",
    },
    "tokens-named": {
        "merge_method": "linear",
        "base_model": "words-0",
        "models": models("words-0", "words-1", "words-2", weight=[0.5, 0.2, 0.3]),
        "tokenizer": {
            "source": "union",
            "pad_to_multiple_of": 32,
            "tokens": {
                "<|tool|>": {"source": "words-2"},
                "hello": {"source": {"kind": "model_token", "model": "words-1", "token": "he"}, "force": True},
                "<|new|>": {"source": {"kind": "model_token", "model": "words-0", "token_id": 9}},
                "<|empty|>": {"source": {"kind": "zero"}},
            },
        },
    },
}


def make_models(folder: Path) -> None:
    """A base and two fine-tunes of it in each family, an adapter, and three models with vocabularies of their own."""
    for family in ("llama", "mistral", "qwen2", "qwen3"):
        tied = {"tie_word_embeddings": True} if family == "qwen2" else {}
        for number in range(3):
            made = tiny.model(family, seed=1, **tied)
            shift(made, number)
            made.save_pretrained(folder / f"{family}-{number}")
            tiny.oracle("chatml").save_pretrained(folder / f"{family}-{number}")
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder / "llama-0"), LoraConfig(r=4, target_modules=["q_proj", "up_proj"])
    )
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))) * 0.05)
    adapted.save_pretrained(folder / "adapter")
    for number in range(3):
        make_words(folder / f"words-{number}", number)


def shift(model: torch.nn.Module, number: int) -> None:
    """Change a model as a fine-tune would: a little everywhere."""
    draw = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=draw) * 0.01 * number)


def make_words(folder: Path, number: int) -> None:
    """A model whose vocabulary is the base's with others ids and some tokens more."""
    tokenizer = json.loads(tiny.oracle("chatml").backend_tokenizer.to_str())
    vocab = tokenizer["model"]["vocab"]
    first = len(tokenizer["added_tokens"])
    texts = sorted((text for text, place in vocab.items() if place >= first), key=vocab.__getitem__)
    vocab |= {text: first + place for place, text in enumerate(texts[::-1] if number == 1 else texts)}
    for text in ([], ["Ġhell", "<|tool|>"], ["<|tool|>", "<|extra|>"])[number]:
        vocab[text] = len(vocab)
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        if text.startswith("<"):
            tokenizer["added_tokens"].append({"id": vocab[text], "content": text, **flags})
    made = tiny.model("llama", seed=1, vocab_size=len(vocab))
    shift(made, number + 1)
    made.save_pretrained(folder)
    found = type(tiny.oracle("chatml"))(tokenizer_object=Tokenizer.from_str(json.dumps(tokenizer)))
    found.save_pretrained(folder)


def filled(value: Any, folder: Path, names: Callable[[str], bool]) -> Any:
    """A recipe in which names of models are paths."""
    if isinstance(value, dict):
        return {key: filled(part, folder, names) for key, part in value.items()}
    if isinstance(value, list):
        return [filled(part, folder, names) for part in value]
    if isinstance(value, str) and all(names(part) for part in value.split("+")):
        return "+".join(str(folder / part) for part in value.split("+"))
    return value


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every recipe merged by both: merged/NAME by mergekit, ours/NAME here."""
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    (folder / "recipes").mkdir()
    for name, recipe in RECIPES.items():
        for kind, (dtype, out) in TYPES.items():
            whole = {**filled(recipe, folder, lambda text: (folder / text).is_dir()), "dtype": dtype, "out_dtype": out}
            (folder / "recipes" / f"{name}-{kind}.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    ask(folder)
    for file in sorted((folder / "recipes").glob("*.yaml")):
        merge(file, folder / "ours" / file.stem, How(threads=1, proof="files"))
    return folder


def by_token(folder: Path, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """The rows of an embedding by their tokens."""
    vocab = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True)
    return {text: rows[number] for text, number in vocab.items()}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", RECIPES)
def test_weights_are_mergekits(name: str, kind: str, merged: Path) -> None:
    left, right = merged / "ours" / f"{name}-{kind}", merged / "merged" / f"{name}-{kind}"
    ours, theirs = tiny.tensors(left), tiny.tensors(right)
    assert ours.keys() == theirs.keys()
    for tensor, values in ours.items():
        wanted = theirs[tensor]
        assert (values.dtype, values.shape) == (wanted.dtype, wanted.shape)
        if name.startswith("tokens") and tensor in ("model.embed_tokens.weight", "lm_head.weight"):
            found, rows = by_token(left, values), by_token(right, wanted)
            assert found.keys() == rows.keys()
            if len(values) > len(rows):
                assert units(values[len(rows) :], wanted[len(rows) :]) <= 8  # mergekit averages padding in float32
            values, wanted = torch.stack([found[text] for text in rows]), torch.stack(list(rows.values()))
        assert units(values, wanted) <= 1, tensor


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("tokens")])
def test_a_united_vocabulary_reads_what_it_read_before(name: str, merged: Path) -> None:
    folder = merged / "ours" / f"{name}-usual"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    source = AutoTokenizer.from_pretrained(merged / ("words-1" if name == "tokens-model" else "words-0"))
    for text in ("in the hellish thing", "Zürich <|im_start|> 東京"):
        assert tokenizer(text)["input_ids"] == source(text)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.vocab_size >= len(tokenizer)
    assert model(**tokenizer("hello", return_tensors="pt")).logits.isfinite().all()


def test_what_mixes_tokens_is_refused_here(merged: Path, tmp_path: Path) -> None:
    from tunesmith.core.problem import Problem

    for number in range(2):
        shutil.copytree(merged / "llama-0", tmp_path / str(number))
    file = tmp_path / "1" / "tokenizer.json"
    data = json.loads(file.read_text())
    vocab = data["model"]["vocab"]
    vocab["h"], vocab["e"] = vocab["e"], vocab["h"]
    file.write_text(json.dumps(data))
    recipe = {"merge_method": "linear", "models": models(str(tmp_path / "0"), str(tmp_path / "1"), weight=[1, 1])}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(Problem, match="gives 2 tokens other ids"):
        merge(tmp_path / "recipe.yaml", tmp_path / "out", How(proof="files"))


def test_the_methods_compared_here_exist() -> None:
    assert all(issubclass(find("merge", recipe["merge_method"]), MergeMethod) for recipe in RECIPES.values())
