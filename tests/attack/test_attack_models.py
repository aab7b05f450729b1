"""Attacks on what is loaded: no code of a stranger runs, and what is broken is said in a paragraph."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_runs as runs
import tiny
import torch
from attacks import one_paragraph, trap
from safetensors.torch import load_file, save_file

from tunesmith.core.problem import Problem
from tunesmith.core.run import ModelSpec
from tunesmith.merge.fold import fold
from tunesmith.models import source
from tunesmith.models.load import load, load_codec, save_tokenizer, skeleton
from tunesmith.models.source import find
from tunesmith.train.verb import train

Break = Callable[[Path], object]


def loaded(folder: Path) -> Any:
    """All of a model that a run reads: shapes, weights, tokenizer, and the tokenizer saved again."""
    found = find(str(folder))
    skeleton(found)
    made = load(ModelSpec(path=str(folder), device="cpu", dtype="float32"))
    save_tokenizer(load_codec(found), found, folder.parent / "saved")
    return made


def refused(folder: Path, *told: str) -> str:
    with pytest.raises(Problem) as caught:
        loaded(folder)
    text = str(caught.value)
    one_paragraph(text)
    assert [part for part in told if part not in text] == [], text
    return text


@pytest.fixture
def victim(base: Path, tmp_path: Path) -> Path:
    """A copy of the model to be broken."""
    return Path(shutil.copytree(base, tmp_path / "model"))


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def raw(folder: Path, header: Any, data: bytes = b"\0" * 64, length: int | None = None) -> None:
    """A safetensors file with any header at all."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", size) + text + data)


def entry(start: Any, stop: Any, shape: Any = (16,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_the_model_that_is_broken_below_is_whole(victim: Path) -> None:
    assert loaded(victim).verdict.forest


HEADERS: dict[str, Break] = {
    "an empty file": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "seven bytes": lambda folder: (folder / "model.safetensors").write_bytes(b"\1" * 7),
    "a huge length": lambda folder: raw(folder, {}, length=2**63 - 1),
    "all ones": lambda folder: raw(folder, {}, length=2**64 - 1),
    "a length past the end": lambda folder: raw(folder, {"a": entry(0, 64)}, length=10_000),
    "offsets past the end": lambda folder: raw(folder, {"a": entry(0, 1 << 40, (1 << 38,))}),
    "negative offsets": lambda folder: raw(folder, {"a": entry(-64, 64)}),
    "offsets backwards": lambda folder: raw(folder, {"a": entry(64, 0), "b": entry(0, 64)}),
    "overlapping": lambda folder: raw(folder, {"a": entry(0, 64), "b": entry(32, 64, (8,))}),
    "a hole": lambda folder: raw(folder, {"a": entry(0, 16, (4,)), "b": entry(32, 64, (8,))}),
    "a shape that lies": lambda folder: raw(folder, {"a": entry(0, 64, (1 << 30, 1 << 30))}),
    "a shape that overflows": lambda folder: raw(folder, {"a": entry(0, 64, (1 << 62, 1 << 62, 16))}),
    "a negative shape": lambda folder: raw(folder, {"a": entry(0, 64, (-16,))}),
    "an unknown type": lambda folder: raw(folder, {"a": entry(0, 64, dtype="PICKLE")}),
    "offsets of mixed types": lambda folder: raw(folder, {"a": entry(0, "64"), "b": entry(0, 64)}),
    "offsets missing": lambda folder: raw(folder, {"a": {"dtype": "F32", "shape": [16]}}),
    "a list": lambda folder: raw(folder, [1, 2]),
    "a name that is a number": lambda folder: raw(folder, b'{"a": 7}'),
    "no JSON": lambda folder: raw(folder, b"\x80\x04garbage"),
    "deep JSON": lambda folder: raw(folder, b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "metadata that is a list": lambda folder: raw(folder, {"__metadata__": [1], "a": entry(0, 64)}),
    "a folder": lambda folder: (((folder / "model.safetensors").unlink(), (folder / "model.safetensors").mkdir())),
    "a pipe": lambda folder: (((folder / "model.safetensors").unlink(), os.mkfifo(folder / "model.safetensors"))),
    "a link to nowhere": lambda folder: (
        (
            (folder / "model.safetensors").unlink(),
            (folder / "model.safetensors").symlink_to("/nowhere/at/all"),
        )
    ),
    "cut short": lambda folder: os.truncate(
        folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 1
    ),
    "one byte more": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes() + b"\0"
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_safetensors_file_that_lies_is_refused(name: str, victim: Path) -> None:
    HEADERS[name](victim)
    refused(victim, "model.safetensors")


CONFIGS: dict[str, bytes | dict[str, Any]] = {
    "not JSON": b"model_type: llama",
    "a pickle": b"\x80\x04K\x07.",
    "empty": b"",
    "a list": b"[]",
    "NaN alone": b"NaN",
    "deep nesting": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a NaN width": {"hidden_size": float("nan")},
    "an infinite width": {"hidden_size": float("inf")},
    "a text width": {"hidden_size": "32"},
    "a list width": {"hidden_size": [32]},
    "no width": {"hidden_size": 0},
    "a negative width": {"hidden_size": -32},
    "no heads": {"num_attention_heads": 0},
    "no key heads": {"num_key_value_heads": 0},
    "uneven heads": {"num_attention_heads": 5, "head_dim": None},
    "negative layers": {"num_hidden_layers": -1},
    "half the layers' widths": {"intermediate_size": 24},
    "a negative vocabulary": {"vocab_size": -1},
    "a huge vocabulary": {"vocab_size": 1 << 40},
    "an unknown activation": {"hidden_act": "os.system"},
    "an unknown type": {"model_type": "evil"},
    "no type": {"model_type": None},
    "a type that is a list": {"model_type": ["llama"]},
    "rope that is a list": {"rope_scaling": [1], "rope_parameters": [1]},
    "an unknown rope": {"rope_parameters": {"rope_type": "evil", "rope_theta": 1.0}},
    "a number type that is none": {"dtype": "os.system"},
    "another architecture": {"model_type": "gpt2"},
    "a vision model": {"model_type": "clip"},
    "weights elsewhere": {"transformers_weights": "../../weights.safetensors"},
    "pickled weights": {"transformers_weights": "adapter_model.bin"},
    "an unknown quantization": {"quantization_config": {"quant_method": "evil"}},
    "quantization without a method": {"quantization_config": {"bits": 4}},
    "quantization that is a list": {"quantization_config": [1]},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_is_none_is_refused(name: str, victim: Path, canary: Path) -> None:
    content = CONFIGS[name]
    trap(victim / "adapter_model.bin", canary)
    if isinstance(content, bytes):
        (victim / "config.json").write_bytes(content)
    else:
        config(victim, **content)
    refused(victim)
    assert not canary.exists()


PRIVATE: dict[str, dict[str, Any]] = {
    "top": {"_attn_implementation": "stranger/kernel"},
    "internal": {"_attn_implementation_internal": "stranger/kernel"},
    "public": {"attn_implementation": "stranger/kernel"},
    "experts": {"_experts_implementation": "stranger/kernel"},
    "experts, internal": {"_experts_implementation_internal": "stranger/kernel"},
    "experts, public": {"experts_implementation": "stranger/kernel"},
    "in the text part": {"text_config": {"_attn_implementation": "stranger/kernel"}},
    "internal, in the vision part": {"vision_config": {"_attn_implementation_internal": "stranger/kernel"}},
    "in a list of parts": {"parts": [{"inner": {"attn_implementation": "stranger/kernel"}}]},
    "another configuration file": {"configuration_files": ["config.4.0.0.json"]},
    "the folder's own code, unknown type": {"auto_map": {"AutoModelForCausalLM": "evil.Model"}, "model_type": "evil"},
}


@pytest.mark.parametrize("name", PRIVATE)
def test_keys_that_load_code_are_refused(name: str, victim: Path, canary: Path) -> None:
    config(victim, **PRIVATE[name])
    (victim / "evil.py").write_text(f"open({str(canary)!r}, 'w').write('ran')\nclass Model: pass\nclass Tok: pass\n")
    refused(victim, "config.json", "code")
    assert not canary.exists()


MAPS: dict[str, Break] = {
    "model": lambda folder: config(folder, auto_map={"AutoConfig": "evil.Model", "AutoModelForCausalLM": "evil.Model"}),
    "model of another repository": lambda folder: config(folder, auto_map={"AutoModelForCausalLM": "x/y--evil.Model"}),
    "tokenizer": lambda folder: tokenizer(folder, auto_map={"AutoTokenizer": ["evil.Tok", "evil.Tok"]}),
    "unknown tokenizer": lambda folder: tokenizer(
        folder, auto_map={"AutoTokenizer": ["evil.Tok", "evil.Tok"]}, tokenizer_class="Tok"
    ),
    "generation": lambda folder: (folder / "custom_generate").mkdir(),
}


def tokenizer(folder: Path, **changes: Any) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("name", MAPS)
def test_code_beside_a_known_model_never_runs(name: str, victim: Path, canary: Path) -> None:
    """A known architecture is transformers' own, whatever the folder brings along."""
    code = f"open({str(canary)!r}, 'w').write('ran')\nclass Model: pass\nclass Tok: pass\n"
    MAPS[name](victim)
    (victim / "evil.py").write_text(code)
    if (victim / "custom_generate").is_dir():
        (victim / "custom_generate" / "generate.py").write_text(code)
    loaded(victim)
    assert not canary.exists()


def test_pickles_are_refused_unread(victim: Path, canary: Path) -> None:
    (victim / "model.safetensors").unlink()
    trap(victim / "pytorch_model.bin", canary)
    refused(victim, "pytorch_model.bin", "pickles")
    assert not canary.exists()


def test_pickles_beside_safetensors_are_not_read(victim: Path, canary: Path) -> None:
    for name in ("pytorch_model.bin", "adapter_model.bin", "optimizer.pt", "training_args.bin", "rng_state.pth"):
        trap(victim / name, canary)
    loaded(victim)
    assert not canary.exists()


def test_pickles_beside_other_safetensors_are_not_read(victim: Path, canary: Path) -> None:
    (victim / "model.safetensors").rename(victim / "consolidated.safetensors")
    trap(victim / "pytorch_model.bin", canary)
    (victim / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model.bin"}, "metadata": {}}')
    refused(victim)
    assert not canary.exists()


def shards(folder: Path, change: Callable[[dict[str, str]], Any]) -> None:
    """Cut the weights into shards with an index that `change` has spoiled."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    index: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    changed = change(index)
    value = {"metadata": {"total_size": 1}, "weight_map": index} if changed is None else changed
    (folder / "model.safetensors.index.json").write_text(value if isinstance(value, str) else json.dumps(value))


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def renamed(file: str) -> Callable[[dict[str, str]], None]:
    """An index in which another file stands for the second shard."""

    def change(index: dict[str, str]) -> None:
        index.update({name: file for name, shard in index.items() if shard == SECOND})

    return change


INDICES: dict[str, Callable[[dict[str, str]], Any]] = {
    "a shard that is not there": renamed("model-00003-of-00002.safetensors"),
    "a path upwards": renamed("../outside.safetensors"),
    "an absolute path": renamed("/opt/outside.safetensors"),
    "a pickle": renamed("pytorch_model.bin"),
    "a pickle upwards": renamed("../evil.bin"),
    "a number": lambda index: index.update(dict.fromkeys(index, 7)),  # type: ignore[arg-type]
    "names that are nowhere": lambda index: (
        [index.pop(name) for name in sorted(index)] and {"weight_map": {"x": FIRST}}
    ),
    "no map": lambda index: {"metadata": {}},
    "a list": lambda index: [1],
    "a map that is a list": lambda index: {"metadata": {}, "weight_map": [1]},
    "no JSON": lambda index: "{",
}


def test_whole_shards_are_read(victim: Path) -> None:
    shards(victim, lambda index: None)
    assert loaded(victim)


@pytest.mark.parametrize("name", INDICES)
def test_an_index_that_lies_is_refused(name: str, victim: Path, canary: Path, tmp_path: Path) -> None:
    shards(victim, INDICES[name])
    shutil.copy(victim / SECOND, tmp_path / "outside.safetensors")
    trap(victim / "pytorch_model.bin", canary)
    trap(tmp_path / "evil.bin", canary)
    refused(victim)
    assert not canary.exists()


def test_a_cut_shard_is_refused(victim: Path) -> None:
    shards(victim, lambda index: None)
    os.truncate(victim / SECOND, 100)
    refused(victim, SECOND)


def test_weights_that_are_missing_are_told(victim: Path) -> None:
    tensors = load_file(victim / "model.safetensors")
    tensors.pop("model.layers.1.mlp.down_proj.weight")
    save_file(tensors, victim / "model.safetensors", metadata={"format": "pt"})
    refused(victim, "1 weights are missing", "model.layers.1.mlp.down_proj.weight")


def test_weights_of_another_shape_are_told(victim: Path) -> None:
    tensors = load_file(victim / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(7)
    save_file(tensors, victim / "model.safetensors", metadata={"format": "pt"})
    refused(victim, "model.norm.weight")


def test_linked_weights_are_read_only_as_weights(victim: Path, tmp_path: Path, canary: Path) -> None:
    """Caches of hubs are full of links; what one leads to is still nothing but safetensors."""
    outside = tmp_path / "elsewhere.safetensors"
    (victim / "model.safetensors").rename(outside)
    (victim / "model.safetensors").symlink_to(outside)
    assert loaded(victim)
    trap(outside, canary)
    refused(victim, "model.safetensors")
    assert not canary.exists()


TOKENIZERS: dict[str, Break] = {
    "no tokenizer": lambda folder: [file.unlink() for file in folder.glob("tokenizer*")] and None,
    "no JSON": lambda folder: (folder / "tokenizer.json").write_text("{"),
    "another value": lambda folder: (folder / "tokenizer.json").write_text("[1]"),
    "deep nesting": lambda folder: (folder / "tokenizer.json").write_text('{"a":' * 50_000),
    "cut short": lambda folder: os.truncate(folder / "tokenizer.json", 1000),
    "configuration that is no JSON": lambda folder: (folder / "tokenizer_config.json").write_text("{"),
    "configuration that is a list": lambda folder: (folder / "tokenizer_config.json").write_text("[]"),
    "deep configuration": lambda folder: (folder / "tokenizer_config.json").write_text('{"a":' * 50_000),
    "added tokens by word": lambda folder: tokenizer(folder, added_tokens_decoder={"x": {"content": "y"}}),
    "added tokens without content": lambda folder: tokenizer(folder, added_tokens_decoder={"900": {}}),
    "added tokens as a list": lambda folder: tokenizer(folder, added_tokens_decoder=[1]),
    "templates without names": lambda folder: (
        (
            (folder / "chat_template.jinja").unlink(missing_ok=True),
            tokenizer(folder, chat_template=[{"x": 1}]),
        )
    ),
    "a template that is no Jinja": lambda folder: (folder / "chat_template.jinja").write_text("{% for %}"),
    "a template that is no text": lambda folder: (folder / "chat_template.jinja").write_bytes(b"\xff\xfe{{"),
    "a template of 5 MB": lambda folder: (folder / "chat_template.jinja").write_text("x" * 5_000_000),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that_is_none_is_refused(name: str, victim: Path) -> None:
    TOKENIZERS[name](victim)
    refused(victim)


def test_a_tokenizer_of_another_model_is_refused(victim: Path) -> None:
    larger = json.loads((victim / "tokenizer.json").read_text())
    vocabulary = larger["model"]["vocab"]
    top = max(vocabulary.values())
    vocabulary.update({f"more{number}": top + 1 + number for number in range(500)})
    (victim / "tokenizer.json").write_text(json.dumps(larger))
    refused(victim, "embedding", "another model")


# ── adapters ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter over the tiny model."""
    where = tmp_path_factory.mktemp("adapter")
    return tiny.trained(base, where, train={"steps": 2}).folder.model


@pytest.fixture
def adapter(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "adapter"))


def adapter_config(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def used(folder: Path) -> None:
    """An adapter in use: gone on with, and folded."""
    from tunesmith.generate.opened import open_model

    open_model(ModelSpec(path=str(folder), device="cpu", dtype="float32"))
    fold(str(folder), folder.parent / "folded")


def test_the_adapter_that_is_broken_below_is_whole(adapter: Path) -> None:
    used(adapter)


ADAPTERS: dict[str, Break] = {
    "auto_mapping": lambda folder: adapter_config(
        folder, auto_mapping={"base_model_class": "x", "parent_library": "evil"}
    ),
    "its own base": lambda folder: adapter_config(folder, base_model_name_or_path=str(folder)),
    "a base that is a file": lambda folder: adapter_config(folder, base_model_name_or_path="/etc/passwd"),
    "a base that is no model": lambda folder: adapter_config(folder, base_model_name_or_path="/etc"),
    "a base upwards": lambda folder: adapter_config(folder, base_model_name_or_path="../../.."),
    "a base that is a number": lambda folder: adapter_config(folder, base_model_name_or_path=7),
    "no base": lambda folder: adapter_config(folder, base_model_name_or_path=None),
    "a base with NUL": lambda folder: adapter_config(folder, base_model_name_or_path="a\0b"),
    "a base of a megabyte": lambda folder: adapter_config(folder, base_model_name_or_path="a" * 1_000_000),
    "a revision that is a list": lambda folder: adapter_config(
        folder, base_model_name_or_path="no/where", revision=["x"]
    ),
    "an unknown kind": lambda folder: adapter_config(folder, peft_type="EVIL"),
    "a kind that is a number": lambda folder: adapter_config(folder, peft_type=7),
    "no rank": lambda folder: adapter_config(folder, r=0),
    "a negative rank": lambda folder: adapter_config(folder, r=-8),
    "another rank": lambda folder: adapter_config(folder, r=4),
    "a rank that is a text": lambda folder: adapter_config(folder, r="8"),
    "targets that are nowhere": lambda folder: adapter_config(folder, target_modules=["nowhere"]),
    "no JSON": lambda folder: (folder / "adapter_config.json").write_text("{"),
    "weights of a pickle": lambda folder: (
        (
            (folder / "adapter_model.safetensors").unlink(),
            trap(folder / "adapter_model.bin", folder.parent / "canary"),
        )
    ),
    "weights cut short": lambda folder: os.truncate(folder / "adapter_model.safetensors", 1000),
    "no weights": lambda folder: (folder / "adapter_model.safetensors").unlink(),
    "empty weights": lambda folder: save_file({}, folder / "adapter_model.safetensors"),
    "half the weights": lambda folder: save_file(
        dict(sorted(load_file(folder / "adapter_model.safetensors").items())[::2]),
        folder / "adapter_model.safetensors",
    ),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_that_lies_is_refused(name: str, adapter: Path, canary: Path) -> None:
    ADAPTERS[name](adapter)
    with pytest.raises(Problem) as caught:
        used(adapter)
    one_paragraph(str(caught.value))
    assert not canary.exists()


def test_two_adapters_over_each_other_do_not_go_round(adapter: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    adapter_config(adapter, base_model_name_or_path=str(other))
    adapter_config(other, base_model_name_or_path=str(adapter))
    with pytest.raises(Problem) as caught:
        find(str(adapter))
    one_paragraph(str(caught.value))


def test_a_run_whose_model_is_itself_does_not_go_round(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.yaml").write_text("model: x\ndata: y\n")
    (run / "model").symlink_to(run)
    with pytest.raises(Problem) as caught:
        find(str(run))
    one_paragraph(str(caught.value))


def test_an_adapter_from_a_hub_cannot_name_a_folder_of_this_machine(
    adapter: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_from_hub", lambda name, revision: adapter)
    for place in (str(base), "../base", "~/base", "."):
        adapter_config(adapter, base_model_name_or_path=place)
        with pytest.raises(Problem, match="names a folder of this machine"):
            find("stranger/adapter")


def test_a_pickle_beside_an_adapter_is_not_read(adapter: Path, canary: Path) -> None:
    trap(adapter / "adapter_model.bin", canary)
    trap(adapter / "optimizer.pt", canary)
    used(adapter)
    assert not canary.exists()


# ── templates (their own attacks are beside the renderer's tests) ─────────────────────────────────────────────────

TEMPLATES = {
    "loop bomb": "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}",
    "string bomb": "{{ 'a' * 10**9 }}",
    "macro bomb": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "attributes": "{{ messages.__class__.__base__.__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['__builtins__']['open']('CANARY', 'w').write('ran') }}",
    "cycler": "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "import": "{% import '/etc/passwd' as x %}{{ x }}",
    "include": "{% include '/etc/passwd' %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_of_a_stranger_stays_in_its_box(name: str, base: Path, victim: Path, canary: Path) -> None:
    (victim / "chat_template.jinja").write_text(TEMPLATES[name].replace("CANARY", str(canary)))
    wanted = runs.run(victim, canary.parent)
    with pytest.raises(Problem) as caught:
        train(wanted)
    one_paragraph(str(caught.value))
    assert not canary.exists()
    assert "root:" not in str(caught.value)
