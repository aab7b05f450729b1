"""Recipes: every fault with its line, what has no effect is refused, stages in their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_models import model, recipe, tensors, three

from tunesmith.core.problem import Problem, Problems
from tunesmith.merge.recipe import read_recipes
from tunesmith.merge.verb import plan

FAULTY = """\
models:
- model: one
  parametres: {weight: 1}
- model: two+three+four
- 7
merge_method: liner
base_modle: one
dtype: bf16
parameters:
  weight:
  - {filter: mlp, valeu: 1}
  normalize: {a: 1}
chat_template: chatlm
tokenizer_source: union
tokenizer: {source: union, pad_to: 8}
"""


def parts(problem: Problem) -> list[str]:
    return [str(part) for part in (problem.parts if isinstance(problem, Problems) else (problem,))]


def faults(file: Path) -> list[str]:
    with pytest.raises(Problem) as caught:
        plan(file, file.parent / "out")
    return parts(caught.value)


def test_every_fault_is_told_with_its_line_and_the_nearest_name(tmp_path: Path) -> None:
    file = recipe(tmp_path, FAULTY)
    told = faults(file)
    lines = [int(line.removeprefix(f"{file}:").partition(":")[0]) for line in told]
    assert lines == [3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 15]
    for hint in ("'parameters'?", "'linear'?", "'base_model'?", "'bfloat16'?", "pad_to_multiple_of", "auto"):
        assert hint in "".join(told)


@pytest.mark.parametrize(
    ("text", "place", "word"),
    [
        ("", "recipe.yaml", "holds no recipe"),
        ("- a\n", "recipe.yaml:1", "keys and values"),
        ("models: []\nmerge_method: linear\n", "recipe.yaml", "neither models nor slices"),
        (
            "models: [{model: a}]\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]\nmerge_method: linear\n",
            "recipe.yaml:2",
            "both given",
        ),
        (
            "slices:\n- sources:\n  - {model: a, layer_range: [2, 1]}\nmerge_method: passthrough\n",
            "recipe.yaml:3",
            "END is not among them",
        ),
        ("slices:\n- sources: [{model: a}]\nmerge_method: passthrough\n", "recipe.yaml:2", "is missing"),
        (
            "slices:\n- sources: [{model: a, layer_range: [0, 1]}]\n  residual_weight: 1\nmerge_method: passthrough\n",
            "recipe.yaml:3",
            "no effect",
        ),
        ("modules: {}\nmodels: [{model: a}]\nmerge_method: linear\n", "recipe.yaml:1", "models or slices at the top"),
        ("models: [{model: a}]\n", "recipe.yaml", "merge_method"),
        (
            "models: [{model: a}]\nmerge_method: linear\ndtype: float16\nout_dtype: float32\n",
            "recipe.yaml:3",
            "never narrower",
        ),
        (
            "models: [{model: {model: a, override_architecture: B}}]\nmerge_method: linear\n",
            "recipe.yaml:1",
            "no effect",
        ),
    ],
)
def test_a_faulty_recipe_is_refused_at_its_place(text: str, place: str, word: str, tmp_path: Path) -> None:
    found = "\n".join(faults(recipe(tmp_path, text)))
    assert place in found and word in found


LINEAR: dict[str, Any] = {"merge_method": "linear", "models": [{"model": "m0"}, {"model": "m1"}]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parameters": {"weight": 1, "density": 0.5}}, ["parameters.density", "linear has no option"]),
        ({"parameters": {"wieght": 1, "weight": 1}}, ["parameters.wieght", "'weight'?"]),
        ({}, ["models.0", "needs a value of weight"]),
        ({"parameters": {"weight": [{"filter": "mlp", "value": 1}]}}, ["needs a value", "without a filter"]),
        (
            {"parameters": {"weight": [{"value": 1}, {"filter": "mlp", "value": 2}]}},
            ["parameters.weight.1", "no tensor", "an earlier line"],
        ),
        (
            {"parameters": {"weight": [{"filter": "mpl", "value": 2}, {"value": 1}]}},
            ["parameters.weight.0", "no tensor", "'mpl'"],
        ),
        ({"parameters": {"weight": "much"}}, ["parameters.weight", "'much'"]),
        ({"parameters": {"weight": [1, -1, -1]}}, []),
        ({"parameters": {"weight": 0}}, ["parameters.weight", "add up to 0"]),
        (
            {
                "models": [
                    {"model": "m0", "parameters": {"weight": 1, "normalize": False}},
                    {"model": "m1", "parameters": {"weight": 2}},
                ]
            },
            ["models.0.parameters.normalize", "one value for all models"],
        ),
        (
            {
                "models": [{"model": "m0", "parameters": {"weight": 1}}, {"model": "m1", "parameters": {"weight": 2}}],
                "parameters": {"weight": 3},
            },
            ["parameters.weight", "a nearer value"],
        ),
        ({"merge_method": "ties", "parameters": {"weight": 1}}, ["base_model", "needs a base model"]),
        (
            {
                "merge_method": "ties",
                "base_model": "m2",
                "parameters": {"weight": 1},
                "models": [{"model": "m2", "parameters": {"weight": 1}}, {"model": "m1"}],
            },
            ["models.0.parameters.weight", "no effect on the base"],
        ),
        ({"merge_method": "passthrough"}, ["takes 1 models, not 2"]),
        ({"merge_method": "slerp", "base_model": "m2", "parameters": {"t": 0.5}}, ["takes 1 models beside the base"]),
    ],
)
def test_parameters_that_do_not_fit_are_refused(change: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    three(tmp_path)
    file = recipe(tmp_path, {**LINEAR, **change})
    if not words:
        plan(file, tmp_path / "out")
        return
    found = "\n".join(faults(file))
    assert all(word in found for word in words), found


def test_slices_that_do_not_fit_are_refused_together(tmp_path: Path) -> None:
    three(tmp_path)
    parts = [("m0", [0, 2]), ("m1", [1, 4])]
    sources = [{"model": name, "layer_range": span} for name, span in parts]
    found = "\n".join(faults(recipe(tmp_path, {"merge_method": "linear", "slices": [{"sources": sources}]})))
    assert "different numbers of layers" in found and "has 3 layers" in found


def test_tensors_that_differ_in_shape_or_are_missing_are_named(tmp_path: Path) -> None:
    first, second = tensors(0), tensors(1)
    second["model.layers.1.mlp.up_proj.weight"] = second["model.layers.1.mlp.up_proj.weight"][:4]
    del second["model.layers.2.mlp.up_proj.weight"]
    model(tmp_path / "m0", first), model(tmp_path / "m1", second)
    found = "\n".join(faults(recipe(tmp_path, {**LINEAR, "parameters": {"weight": 1}})))
    assert "layers.1.mlp.up_proj.weight differs in shape: [16, 8]" in found and "[4, 8]" in found
    assert "layers.2.mlp.up_proj.weight is not in" in found


def test_models_of_different_architectures_are_refused(tmp_path: Path) -> None:
    model(tmp_path / "m0", tensors(0)), model(tmp_path / "m1", tensors(1), model_type="qwen2")
    assert "llama, qwen2" in "".join(faults(recipe(tmp_path, {**LINEAR, "parameters": {"weight": 1}})))


STAGES = """\
name: last
models: [{model: first}, {model: c}]
merge_method: linear
parameters: {weight: 1}
---
name: first
models: [{model: a}, {model: b}]
merge_method: linear
"""


def test_stages_come_after_those_they_take(tmp_path: Path) -> None:
    found = read_recipes(recipe(tmp_path, STAGES))
    assert [each.stage for each in found] == ["first", "last"]
    assert [str(name) for name in found[1].models] == ["first", "c"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("name: first", "name: last"), ["two stages are called 'last'", "recipe.yaml:6"]),
        (("{model: a}", "{model: last}"), ["one result"]),
        (("{model: first}", "{model: other}"), ["last, first"]),
        (("merge_method: linear\nparameters", "merge_method: lineer\nparameters"), ["recipe.yaml:3", "'linear'?"]),
    ],
)
def test_stages_that_come_to_no_result_are_refused(change: tuple[str, str], words: list[str], tmp_path: Path) -> None:
    with pytest.raises(Problem) as caught:
        read_recipes(recipe(tmp_path, STAGES.replace(*change)))
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("org/a", ("org/a", None, None, None)),
        ("org/a@main", ("org/a", "main", None, None)),
        ("org/a@v1+org/b@v2", ("org/a", "v1", "org/b", "v2")),
    ],
)
def test_names_of_models(text: str, parts: tuple[str | None, ...], tmp_path: Path) -> None:
    (found,) = read_recipes(recipe(tmp_path, f"models: [{{model: {text}}}]\nmerge_method: linear\n"))
    (name,) = found.models
    assert (name.path, name.revision, name.adapter, name.adapter_revision) == parts
    assert str(name) == text


def test_many_faults_of_one_kind_are_counted(tmp_path: Path) -> None:
    first, second = tensors(0, layers=12), tensors(1, layers=12)
    for name in [name for name in second if "proj" in name]:
        second[name] = second[name][:4]
    model(tmp_path / "m0", first), model(tmp_path / "m1", second)
    found = faults(recipe(tmp_path, {**LINEAR, "parameters": {"weight": 1}}))
    assert len(found) == 21 and "4 more such faults" in found[-1]
