"""Merged tensors against plain formulas: recipes' levels, gradients and slices, number types, files and adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_models import TOKENS, WIDTH, Tensors, model, read, recipe, tensors, three

from tunesmith.core.problem import Problem
from tunesmith.merge import engine, layout, ranks
from tunesmith.merge.methods import Block, Whole
from tunesmith.merge.numbers import decode, encode, promoted
from tunesmith.merge.verb import How, merge

FILES = How(proof="files")


def merged(where: Path, value: Any, how: How = FILES) -> Tensors:
    folder = merge(recipe(where, value), where / "out", how).folder
    assert not list(where.glob(".out*"))
    return read(folder)


def config(where: Path) -> dict[str, Any]:
    return json.loads((where / "out" / "config.json").read_text())


def close(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=2e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def two(**values: Any) -> dict[str, Any]:
    return {"merge_method": "linear", "models": [{"model": "m0"}, {"model": "m1"}], **values}


def weights(name: str, layers: int) -> tuple[float, float]:
    """The weights of the recipe below, worked out by hand."""
    number = int(name.split(".")[2]) if ".layers." in name else 0
    t = number / (layers - 1)
    if "mlp" in name:
        return 1.0, 2 * t if t <= 0.5 else 1.0
    if "norm" in name:
        return 1.0, 0.5
    return 1.0, 3.0


def test_filters_and_gradients_by_level(tmp_path: Path) -> None:
    made = three(tmp_path, layers=5)
    second = [{"filter": "mlp", "value": [0, 1, 1]}, {"filter": "norm", "value": 0.5}]
    value = two(parameters={"weight": 3, "normalize": False})
    value["models"][0]["parameters"] = {"weight": 1}
    value["models"][1]["parameters"] = {"weight": second}
    expected = {
        name: sum(weight * one[name] for weight, one in zip(weights(name, 5), made, strict=False)) for name in made[0]
    }
    close(merged(tmp_path, value), expected)  # type: ignore[arg-type]


def test_overlapping_slices_are_renumbered_and_the_ends_come_from_the_outer_slices(tmp_path: Path) -> None:
    first, second, _ = three(tmp_path)
    parts = [("m0", [0, 2]), ("m1", [0, 3]), ("m1", [2, 3])]
    slices = [{"sources": [{"model": name, "layer_range": span}]} for name, span in parts]
    found = merged(tmp_path, {"merge_method": "passthrough", "slices": slices})
    order = [(first, 0), (first, 1), (second, 0), (second, 1), (second, 2), (second, 2)]
    expected = {"model.embed_tokens.weight": first["model.embed_tokens.weight"]}
    expected |= {name: second[name] for name in ("model.norm.weight", "lm_head.weight")}
    for number, (held, layer) in enumerate(order):
        start = f"model.layers.{layer}."
        expected |= {
            f"model.layers.{number}.{n.removeprefix(start)}": v for n, v in held.items() if n.startswith(start)
        }
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert config(tmp_path)["num_hidden_layers"] == 6


def test_each_slice_has_its_own_gradient_and_parameters(tmp_path: Path) -> None:
    first, second, _ = three(tmp_path)

    def part(span: list[int], **parameters: Any) -> dict[str, Any]:
        sources = [{"model": "m0", "layer_range": span}, {"model": "m1", "layer_range": span}]
        return {"sources": sources, **({"parameters": parameters} if parameters else {})}

    slices = [part([0, 2], t=[0, 1]), part([2, 3], t=[0.25, 0.75]), part([0, 1])]
    value = {"merge_method": "slerp", "base_model": "m0", "slices": slices, "parameters": {"t": 1}}
    found = merged(tmp_path, value)
    name = "self_attn.q_proj.weight"
    torch.testing.assert_close(found[f"model.layers.0.{name}"], first[f"model.layers.0.{name}"])
    torch.testing.assert_close(found[f"model.layers.1.{name}"], second[f"model.layers.1.{name}"])
    torch.testing.assert_close(found[f"model.layers.3.{name}"], second[f"model.layers.0.{name}"])
    a, b = (held[f"model.layers.2.{name}"].double() for held in (first, second))
    angle = torch.arccos((a * b).sum() / a.norm() / b.norm())
    expected = (torch.sin(0.25 * angle) * a + torch.sin(0.75 * angle) * b) / torch.sin(angle)
    torch.testing.assert_close(found[f"model.layers.2.{name}"], expected.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["model.embed_tokens.weight"], first["model.embed_tokens.weight"])


def test_lists_by_layer_in_the_configuration_follow_the_layers(tmp_path: Path) -> None:
    kinds = {"m0": ["full", "slide", "full"], "m1": ["slide", "slide", "full"]}
    for seed, (name, said) in enumerate(kinds.items()):
        model(tmp_path / name, tensors(seed), layer_types=said, torch_dtype="float32", auto_map={"a": "b"})
    slices = [{"sources": [{"model": name, "layer_range": span}]} for name, span in (("m0", [0, 2]), ("m1", [1, 3]))]
    merged(tmp_path, {"merge_method": "passthrough", "slices": slices})
    found = config(tmp_path)
    assert found["layer_types"] == ["full", "slide", "slide", "full"]
    assert found["dtype"] == "float32" and not {"torch_dtype", "auto_map"} & set(found)


def test_a_base_that_is_no_model_is_one_where_the_method_sets_none_apart(tmp_path: Path) -> None:
    made = three(tmp_path)
    found = merged(tmp_path, two(base_model="m2", parameters={"weight": 1}))
    close(found, {name: (made[0][name] + made[1][name] + made[2][name]) / 3 for name in made[0]})


def test_a_tied_head_is_read_from_the_embedding(tmp_path: Path) -> None:
    first, second = tensors(0), tensors(1, tied=True)
    model(tmp_path / "m0", first), model(tmp_path / "m1", second)
    found = merged(tmp_path, two(parameters={"weight": 1}))
    torch.testing.assert_close(
        found["lm_head.weight"], (first["lm_head.weight"] + second["model.embed_tokens.weight"]) / 2
    )
    assert config(tmp_path)["tie_word_embeddings"] is False


def test_tied_models_stay_tied(tmp_path: Path) -> None:
    three(tmp_path, tied=True)
    assert "lm_head.weight" not in merged(tmp_path, two(parameters={"weight": 1}))
    assert config(tmp_path)["tie_word_embeddings"] is True


@pytest.mark.parametrize(
    ("types", "asked", "result"),
    [
        (("bfloat16", "bfloat16"), {}, "bfloat16"),
        (("bfloat16", "float16"), {}, "float32"),
        (("float32", "bfloat16"), {"dtype": "bfloat16"}, "bfloat16"),
        (("float16", "float16"), {"dtype": "float32", "out_dtype": "float16"}, "float16"),
        (("float64", "bfloat16"), {"out_dtype": "bfloat16"}, "bfloat16"),
    ],
)
def test_inputs_of_mixed_types_are_summed_in_float32_and_rounded_once(
    types: tuple[str, str], asked: dict[str, str], result: str, tmp_path: Path
) -> None:
    made = [tensors(seed, dtype=getattr(torch, kind)) for seed, kind in enumerate(types)]
    for number, held in enumerate(made):
        model(tmp_path / f"m{number}", held, shards=1 + number)
    found = merged(tmp_path, two(parameters={"weight": 0.5, "normalize": False}, **asked))
    for name, value in found.items():
        exact = 0.5 * made[0][name].double() + 0.5 * made[1][name].double()
        assert value.dtype == getattr(torch, result)
        assert torch.equal(value, exact.to(value.dtype)), name
    assert config(tmp_path)["dtype"] == result


@pytest.mark.parametrize("shards", [1, 3])
def test_many_files_and_threads_give_the_same_bits(
    shards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(3):
        model(tmp_path / f"m{seed}", tensors(seed), shards=shards)
    value = {
        "merge_method": "dare_ties",
        "base_model": "m0",
        "models": [{"model": "m1"}, {"model": "m2"}],
        "parameters": {"weight": 0.5, "density": 0.5},
    }
    monkeypatch.setattr(layout, "BLOCK", 3 * WIDTH)
    found = merge(recipe(tmp_path, value), tmp_path / "one", How(proof="files", threads=1, seed=3)).folder
    other = merge(recipe(tmp_path, value), tmp_path / "many", How(proof="files", threads=4, seed=3, shard=700)).folder
    another = merge(recipe(tmp_path, value), tmp_path / "seed", How(proof="files", seed=4)).folder
    assert len(list(other.glob("*.safetensors"))) > 3
    index = json.loads((other / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == read(other).keys()
    assert all(torch.equal(value, read(other)[name]) for name, value in read(found).items())
    assert any(not torch.equal(value, read(another)[name]) for name, value in read(found).items())


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_kept_between_passes_is_what_the_files_hold(
    kind: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(3):
        model(tmp_path / f"m{seed}", tensors(seed, dtype=kind))
    monkeypatch.setattr(layout, "BLOCK", 3 * WIDTH)
    monkeypatch.setattr(ranks, "SAMPLE", 16)
    value = two(base_model="m2", merge_method="ties", parameters={"weight": 0.5, "density": 0.4})
    value["models"].append({"model": "m2"})
    found = read(merge(recipe(tmp_path, value), tmp_path / "kept", FILES).folder)
    monkeypatch.setattr(engine, "HELD", 0)
    again = read(merge(recipe(tmp_path, value), tmp_path / "read", FILES).folder)
    assert all(torch.equal(found[name], again[name]) for name in again)
    assert any(not torch.equal(found[name], read(tmp_path / "m2")[name]) for name in again)


def test_numbers_that_are_no_floats_are_copied_or_refused(tmp_path: Path) -> None:
    for number in range(2):
        held = {**tensors(number), "model.steps": torch.arange(4)}
        model(tmp_path / f"m{number}", held)
    assert torch.equal(merged(tmp_path, two(parameters={"weight": 1}))["model.steps"], torch.arange(4))
    model(tmp_path / "m2", {**tensors(2), "model.steps": torch.arange(4) + 1})
    value = two(models=[{"model": "m0"}, {"model": "m2"}], parameters={"weight": 1})
    with pytest.raises(Problem, match=r"model\.steps: holds I64 numbers that differ"):
        merge(recipe(tmp_path, value), tmp_path / "other", FILES)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_is_added_row_by_row(tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "BLOCK", 3 * WIDTH)
    (tmp_path / "lora").mkdir()
    draw = torch.Generator().manual_seed(9)
    sizes = {"model.layers.1.mlp.up_proj": (2 * WIDTH, WIDTH), "lm_head": (TOKENS, WIDTH)}
    held: Tensors = {}
    for name, (rows, columns) in sizes.items():
        held[f"base_model.model.{name}.lora_A.weight"] = torch.randn(2, columns, generator=draw)
        held[f"base_model.model.{name}.lora_B.weight"] = torch.randn(rows, 2, generator=draw)
    save_file(held, tmp_path / "lora" / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "base_model_name_or_path": "m0"}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(about))
    made = three(tmp_path, tied=tied)
    found = merged(tmp_path, {"merge_method": "passthrough", "models": [{"model": "m0+lora"}]})
    expected = dict(made[0])
    expected.setdefault("lm_head.weight", made[0]["model.embed_tokens.weight"])
    for name in sizes:
        up, down = (held[f"base_model.model.{name}.lora_{side}.weight"] for side in "BA")
        expected[f"{name}.weight"] = expected[f"{name}.weight"] + 3 * up @ down
    close(found, expected)
    assert config(tmp_path)["tie_word_embeddings"] is False


def test_stages_are_merged_one_into_the_next(tmp_path: Path) -> None:
    made = three(tmp_path)
    text = (
        "name: half\nmodels: [{model: %(w)s/m0}, {model: %(w)s/m1}]\nmerge_method: linear\nparameters: {weight: 1}\n"
        "---\nmodels: [{model: half}, {model: %(w)s/m2}]\nmerge_method: linear\nparameters: {weight: 1}\n"
    )
    found = merged(tmp_path, text % {"w": tmp_path})
    close(found, {name: ((made[0][name] + made[1][name]) / 2 + made[2][name]) / 2 for name in made[0]})


def test_a_result_that_is_not_finite_is_never_there(tmp_path: Path) -> None:
    three(tmp_path)
    value = two(parameters={"weight": 1e5, "normalize": False}, out_dtype="float16")
    with pytest.raises(Problem, match="comes out infinite or undefined by linear"):
        merge(recipe(tmp_path, value), tmp_path / "out", FILES)
    broken = tensors(5)
    broken["model.norm.weight"][2] = float("nan")
    model(tmp_path / "broken", broken)
    value = two(models=[{"model": "m0"}, {"model": "broken"}], parameters={"weight": 1})
    with pytest.raises(Problem, match=r"broken: its tensor model\.norm\.weight is not finite"):
        merge(recipe(tmp_path, value), tmp_path / "out", FILES)
    assert not (tmp_path / "out").exists()


@given(st.lists(st.floats(width=32, min_value=-(2.0**126), max_value=2.0**126), min_size=1))
def test_numbers_are_rounded_as_torch_rounds_them(values: list[float]) -> None:
    numbers = np.array(values, np.float32)
    for stored, kind in (("BF16", torch.bfloat16), ("F32", torch.float32), ("F64", torch.float64)):
        expected = torch.from_numpy(numbers).to(kind)
        bits = encode(numbers, stored)
        assert np.array_equal(bits.view(np.uint8), expected.view(torch.uint8).numpy())
        assert np.array_equal(decode(bits, stored, np.float32), expected.float().numpy())


@given(st.floats(min_value=-1e30, max_value=1e30), st.integers(-2, 2))
def test_float64_is_rounded_to_bfloat16_once(value: float, nudge: int) -> None:
    """Beside the middle of two neighbours, where rounding to float32 first would go the wrong way."""
    low = torch.tensor(value, dtype=torch.bfloat16)
    high = torch.nextafter(low, torch.tensor(torch.inf, dtype=torch.bfloat16))
    exact = np.array([(low.double().item() + high.double().item()) / 2 * (1 + nudge * 2.0**-50)])
    found = float(decode(encode(exact, "BF16"), "BF16", np.float32)[0])
    around = [low.double().item(), high.double().item()]
    best = min(abs(exact[0] - other) for other in around)
    assert abs(found - exact[0]) == best


def test_the_common_type_holds_all(tmp_path: Path) -> None:
    assert [promoted(set(types)) for types in (["F16"], ["F16", "BF16"], ["F32", "BF16"], ["F64", "F16"])] == [
        "F16",
        "F32",
        "F32",
        "F64",
    ]


def test_ranks_of_a_tensor_that_is_hardly_larger_than_a_sample(tmp_path: Path) -> None:
    """Such a one is sampled whole, in blocks that keep their shape."""
    rows = ranks.SAMPLE * 3 // 2 // 512
    values = np.random.default_rng(0).permutation(rows * 512).reshape(rows, 512).astype(np.float32)
    blocks = np.array_split(values, 3)

    def read(number: int, step: int = 1) -> Block:
        assert step == 1
        return Block(None, (blocks[number],), number, np.random.default_rng)

    whole = Whole(values.shape, 3, read, read)
    wanted = [[0, 1000, values.size - 1]]
    ((first, middle, last),) = ranks.ranked(whole, lambda block: [block.tensors[0]], wanted)
    assert [found.value for found in (first, middle, last)] == [0, 1000, values.size - 1]
