"""Adapters combined in the space of what they change, and taken out of the difference of two models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from tunesmith.core.problem import Problem
from tunesmith.merge.combine import Part, combine
from tunesmith.merge.extract import extract
from tunesmith.merge.factors import Factors, joined, nearest

TARGETS = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}
TOKENS = torch.arange(3, 23).reshape(1, 20)


def base_of(where: Path, family: str = "llama") -> Path:
    path = where / f"base-{family}"
    return path if path.exists() else tiny.folder(path, family)


def adapter(where: Path, name: str, seed: int, family: str = "llama", **options: Any) -> Path:
    """A LoRA adapter with random factors over the tiny base, made and saved by PEFT."""
    base = base_of(where, family)
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=TARGETS[family],
        init_lora_weights=False,
        fan_in_fan_out=family == "gpt2",
        **{"r": 4, "lora_alpha": 6, **options},
    )
    made = get_peft_model(model, config)
    made.name_or_path = str(base)
    torch.manual_seed(seed)
    with torch.no_grad():
        for label, weight in made.named_parameters():
            if "lora_" in label and "magnitude" not in label:
                weight.normal_(std=0.2)
            elif "magnitude" in label:
                weight.mul_(1 + 0.3 * torch.rand_like(weight))
    made.peft_config["default"].base_model_name_or_path = str(base)
    made.save_pretrained(where / name)
    return where / name


def delta(where: Path, folder: Path, family: str = "llama") -> dict[str, Tensor]:
    """What PEFT itself merges into the base."""
    base = AutoModelForCausalLM.from_pretrained(base_of(where, family)).state_dict()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_of(where, family)), str(folder))
    merged = model.merge_and_unload().state_dict()
    return {name: merged[name] - base[name] for name in base if not torch.equal(merged[name], base[name])}


def distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    missed = sum(float((found[name] - wanted[name]).norm() ** 2) for name in wanted)
    return (missed / sum(float(value.norm() ** 2) for value in wanted.values())) ** 0.5


def weighted(parts: list[tuple[dict[str, Tensor], float]]) -> dict[str, Tensor]:
    names = {name for part, _ in parts for name in part}
    return {name: sum(weight * part[name] for part, weight in parts if name in part) for name in names}  # type: ignore[misc]


class TestFactors:
    def test_shortened_is_the_best_of_its_rank(self) -> None:
        torch.manual_seed(0)
        factors = Factors(torch.randn(20, 7), torch.randn(7, 15))
        _, sizes, _ = torch.linalg.svd(factors.dense())
        short = factors.shortened(3)
        assert short.rank == 3
        assert float((short.dense() - factors.dense()).norm()) == pytest.approx(float(sizes[3:].norm()), rel=1e-4)
        assert torch.allclose(short.dense(), nearest(factors.dense(), 3).dense(), atol=1e-4)

    def test_joined_is_the_sum(self) -> None:
        torch.manual_seed(0)
        parts = [Factors(torch.randn(9, rank), torch.randn(rank, 5)) for rank in (2, 3)]
        assert torch.allclose(joined(parts).dense(), parts[0].dense() + parts[1].dense(), atol=1e-5)


class TestCombine:
    @pytest.mark.parametrize("family", ["llama", "gpt2"])
    @pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"rank_pattern": {"layers.1.mlp.down_proj": 7}}])
    def test_the_sum_is_exact_and_peft_loads_it(self, tmp_path: Path, family: str, options: dict[str, Any]) -> None:
        left = adapter(tmp_path, "left", 1, family, **options)
        right = adapter(tmp_path, "right", 2, family, r=3)
        made = combine([Part(str(left), 0.7), Part(str(right), -1.5)], tmp_path / "both")
        wanted = weighted([(delta(tmp_path, left, family), 0.7), (delta(tmp_path, right, family), -1.5)])
        assert distance(delta(tmp_path, made.folder, family), wanted) < 1e-5
        assert made.distance.relative < 1e-6

    @pytest.mark.parametrize("options", [{"use_rslora": True}, {"lora_alpha": 11}])
    def test_one_adapter_of_weight_one_is_itself(self, tmp_path: Path, options: dict[str, Any]) -> None:
        only = adapter(tmp_path, "only", 1, **options)
        made = combine([Part(str(only), 1.0)], tmp_path / "same")
        assert distance(delta(tmp_path, made.folder), delta(tmp_path, only)) < 1e-6

    def test_a_lower_rank_says_what_it_loses(self, tmp_path: Path) -> None:
        parts = [adapter(tmp_path, name, seed) for seed, name in enumerate("ab")]
        made = combine([Part(str(part), 1.0) for part in parts], tmp_path / "short", rank=5)
        wanted = weighted([(delta(tmp_path, part), 1.0) for part in parts])
        lost = distance(delta(tmp_path, made.folder), wanted)
        assert made.rank == 5
        assert 0.01 < lost < 0.9
        assert made.distance.relative == pytest.approx(lost, rel=1e-3)
        assert made.distance.worst >= made.distance.relative

    def test_dora_needs_a_rank_and_is_then_measured(self, tmp_path: Path) -> None:
        dora = adapter(tmp_path, "dora", 1, use_dora=True)
        with pytest.raises(Problem, match="DoRA"):
            combine([Part(str(dora), 1.0)], tmp_path / "out")
        made = combine([Part(str(dora), 1.0)], tmp_path / "out", rank=32)
        assert distance(delta(tmp_path, made.folder), delta(tmp_path, dora)) < 1e-4

    @pytest.mark.parametrize("method", ["ties", "dare_linear", "breadcrumbs"])
    def test_methods_work_on_changes(self, tmp_path: Path, method: str) -> None:
        parts = [adapter(tmp_path, name, seed) for seed, name in enumerate("ab")]
        both = [Part(str(part), 0.5) for part in parts]
        made = combine(both, tmp_path / "out", method=method, rank=32, options={"density": 0.5})
        again = combine(both, tmp_path / "again", method=method, rank=32, options={"density": 0.5})
        assert tiny.difference(tiny.tensors(made.folder), tiny.tensors(again.folder)) == 0
        assert 0.05 < made.distance.relative < 2

    def test_ties_is_its_formula(self, tmp_path: Path) -> None:
        """Trim to the largest half, elect signs, average what agrees: written out for one weight."""
        parts = [adapter(tmp_path, name, seed) for seed, name in enumerate("ab")]
        made = combine(
            [Part(str(part), 1.0) for part in parts], tmp_path / "out", method="ties", rank=64, options={"density": 0.5}
        )
        name = "model.layers.0.self_attn.q_proj.weight"
        stack = torch.stack([delta(tmp_path, part)[name] for part in parts])
        size = stack[0].numel()
        for part in stack:
            part[part.abs() < part.abs().flatten().kthvalue(size - size // 2 + 1).values] = 0
        agrees = (stack.sign() == torch.where(stack.sum(0) >= 0, 1.0, -1.0)) & (stack != 0)
        wanted = (stack * agrees).sum(0) / agrees.sum(0).clamp_min(1)
        assert float((delta(tmp_path, made.folder)[name] - wanted).abs().max()) < 1e-4

    def test_what_cannot_be_combined_is_refused(self, tmp_path: Path) -> None:
        plain = adapter(tmp_path, "plain", 1)
        other = adapter(tmp_path, "other", 1, "gpt2")
        bias = adapter(tmp_path, "bias", 1, lora_bias=True)
        saved = adapter(tmp_path, "saved", 1, modules_to_save=["lm_head"])
        with pytest.raises(Problem, match="different base"):
            combine([Part(str(plain), 1.0), Part(str(other), 1.0)], tmp_path / "out")
        for folder, reason in ((bias, "low-rank factors alone"), (saved, "replaces whole layers")):
            with pytest.raises(Problem, match=reason):
                combine([Part(str(folder), 1.0)], tmp_path / "out")
        with pytest.raises(Problem, match="over a base"):
            combine([Part(str(plain), 1.0)], tmp_path / "out", method="linear")
        with pytest.raises(Problem, match="plain weights"):
            combine([Part(str(base_of(tmp_path)), 1.0)], tmp_path / "out")
        (tmp_path / "out").mkdir()
        with pytest.raises(Problem, match="exists already"):
            combine([Part(str(plain), 1.0)], tmp_path / "out")
        assert not list(tmp_path.glob(".*staging"))

    def test_parts_are_read_from_words(self) -> None:
        assert Part.of("runs/a:0.5") == Part("runs/a", 0.5)
        assert Part.of("runs/a") == Part("runs/a", 1.0)
        assert Part.of("modelscope:a/b") == Part("modelscope:a/b", 1.0)


class TestExtract:
    @pytest.mark.parametrize("family", ["llama", "gpt2"])
    def test_a_change_of_low_rank_comes_back(self, tmp_path: Path, family: str) -> None:
        lora = adapter(tmp_path, "lora", 1, family)
        base = base_of(tmp_path, family)
        merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(lora)).merge_and_unload()
        merged.save_pretrained(tmp_path / "tuned")
        tiny.oracle("chatml").save_pretrained(tmp_path / "tuned")
        made = extract(str(tmp_path / "tuned"), str(base), tmp_path / "out", rank=4)
        assert distance(delta(tmp_path, made.folder, family), delta(tmp_path, lora, family)) < 1e-4
        assert made.distance.relative < 1e-4
        assert made.left == ()
        assert json.loads((made.folder / "adapter_config.json").read_text())["r"] == 4

    def test_what_is_lost_is_measured_and_what_is_left_is_named(self, tmp_path: Path) -> None:
        base = base_of(tmp_path)
        model = AutoModelForCausalLM.from_pretrained(base)
        torch.manual_seed(3)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
        model.save_pretrained(tmp_path / "tuned")
        tiny.oracle("chatml").save_pretrained(tmp_path / "tuned")
        made = extract(str(tmp_path / "tuned"), str(base), tmp_path / "out", rank=8, targets=("q_proj",))
        found = delta(tmp_path, made.folder)
        assert all(name.endswith("q_proj.weight") for name in found)
        for name, value in found.items():
            wanted = model.state_dict()[name] - before[name]
            assert float((value - wanted).norm() / wanted.norm()) == pytest.approx(made.errors[name], rel=1e-3)
        assert "model.norm.weight" in made.left
        assert 0.2 < made.distance.relative < 1

    def test_models_that_do_not_fit_are_refused(self, tmp_path: Path) -> None:
        base = base_of(tmp_path)
        with pytest.raises(Problem, match="does not differ"):
            extract(str(base), str(base), tmp_path / "out")
        with pytest.raises(Problem, match="has other weights"):
            extract(str(base_of(tmp_path, "gpt2")), str(base), tmp_path / "out")
        with pytest.raises(Problem, match="no layer's name ends in 'q_prof'"):
            extract(str(base), str(base), tmp_path / "out", targets=("q_prof",))
