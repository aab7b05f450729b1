"""Mixtures of experts: equal experts are the dense model, routers choose by their formula, and only they learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from made_codecs import oracle
from made_methods import logits
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tunesmith.core.problem import Problem
from tunesmith.merge.verb import How, merge, plan

TOLERANCE = 1e-5
BLOCKS = {"llama": "block_sparse_moe", "mistral": "block_sparse_moe", "qwen2": "mlp", "qwen3": "mlp"}
RAIN, JAZZ = "what is rain?", "the end of jazz is a long one"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of each family, and a third whose embeddings are tied."""
    folder = tmp_path_factory.mktemp("dense")
    for family in BLOCKS:
        for number in range(2):
            tiny.folder(folder / f"{family}-{number}", family, seed=number)
    tiny.folder(folder / "qwen3-tied", "qwen3", seed=4, tie_word_embeddings=True)
    return folder


def build(where: Path, how: How = How(proof="files"), **value: Any) -> Path:  # noqa: B008 (frozen)
    return merge(write(where, **value), where / "out", how).folder


def write(where: Path, **value: Any) -> Path:
    where.mkdir(exist_ok=True)
    file = where / "experts.yaml"
    file.write_text(json.dumps(value), "utf-8")
    return file


def of(*names: Path | str, **each: Any) -> list[dict[str, Any]]:
    """Experts; each: what all have."""
    return [{"source_model": str(name), **each} for name in names]


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def silent(name: Path) -> list[dict[str, Any]]:
    """A shared expert that adds nothing."""
    return of(name, residual_scale=0.0)


class Mixed(nn.Module):
    """An oracle: dense MLPs side by side, weighted by the softmax of the best k of a router's products."""

    def __init__(self, parts: list[nn.Module], router: Tensor, k: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.router, self.k = router, k

    def forward(self, x: Tensor) -> Tensor:
        scores = x @ self.router.T
        kept = scores >= scores.topk(self.k, dim=-1).values[..., -1:]
        weights = scores.masked_fill(~kept, float("-inf")).softmax(-1)
        return sum(part(x) * weights[..., number : number + 1] for number, part in enumerate(self.parts))  # type: ignore[return-value]


@pytest.mark.parametrize("family", BLOCKS)
class TestEveryLayout:
    def test_equal_experts_are_the_dense_model(self, family: str, models: Path, tmp_path: Path) -> None:
        base = models / f"{family}-0"
        shared = {"shared_experts": silent(base)} if family == "qwen2" else {}
        out = build(tmp_path, base_model=str(base), gate_mode="random", experts=of(base, base, base), **shared)
        found, expected = logits(load(out)), logits(load(base))
        assert expected.abs().max() > 0.1
        assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()

    def test_it_computes_what_its_parts_do(self, family: str, models: Path, tmp_path: Path) -> None:
        names = [models / f"{family}-{number}" for number in range(2)]
        shared = {"shared_experts": silent(names[0])} if family == "qwen2" else {}
        experts = of(*names, names[0])
        out = build(tmp_path, base_model=str(names[0]), gate_mode="uniform_random", experts=experts, **shared)
        held, dense, other = tiny.tensors(out), load(names[0]), load(names[1])
        for number, (layer, theirs) in enumerate(zip(dense.model.layers, other.model.layers, strict=True)):
            router = held[f"model.layers.{number}.{BLOCKS[family]}.gate.weight"] * 1.0
            layer.mlp = Mixed([layer.mlp, theirs.mlp, layer.mlp], router, 2)
        found, expected = logits(load(out)), logits(dense)
        assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()
        assert (found - logits(load(names[0]))).abs().max() > 1e-2

    def test_its_files_are_those_that_transformers_writes(self, family: str, models: Path, tmp_path: Path) -> None:
        base = models / f"{family}-0"
        shared = {"shared_experts": of(base)} if family == "qwen2" else {}
        out = build(tmp_path, base_model=str(base), gate_mode="random", experts=of(base, base), **shared)
        load(out).save_pretrained(tmp_path / "again")
        ours, theirs = tiny.tensors(out), tiny.tensors(tmp_path / "again")
        if BLOCKS[family] == "mlp":  # of Mixtral it writes the newer names; the published ones are those below
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
        block = f"model.layers.2.{BLOCKS[family]}.experts.1."
        parts = {name.removeprefix(block) for name in ours if name.startswith(block)}
        known = {"w1.weight", "w2.weight", "w3.weight"}
        plain = {"gate_proj.weight", "up_proj.weight", "down_proj.weight"}
        assert parts == (known if family in ("llama", "mistral") else plain)
        again = logits(load(tmp_path / "again"))
        assert torch.equal(again, logits(load(out)))


def test_a_llama_takes_the_layout_with_a_shared_expert(models: Path, tmp_path: Path) -> None:
    base = models / "llama-0"
    halves = {"residual_scale": 0.5}
    out = build(
        tmp_path,
        base_model=str(base),
        gate_mode="random",
        experts=of(base, base, **halves),
        shared_experts=silent(base),
    )
    model = load(out)
    assert model.config.model_type == "qwen2_moe"
    dense = load(base)
    for layer in dense.model.layers:
        with torch.no_grad():
            layer.mlp.down_proj.weight.mul_(0.5)
    expected = logits(dense)
    assert (logits(model) - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_tied_embeddings_stay_tied_and_the_proof_loads_it(models: Path, tmp_path: Path) -> None:
    base = models / "qwen3-tied"
    value = {"base_model": str(base), "gate_mode": "random", "experts": of(base, models / "qwen3-1")}
    done = merge(write(tmp_path, **value), tmp_path / "out")
    assert done.proof.prompts
    assert "lm_head.weight" not in tiny.tensors(done.folder)
    assert load(done.folder).config.tie_word_embeddings
    assert "Qwen3 MoE layout (2 experts, 2 a token)" in (done.folder / "README.md").read_text("utf-8")
    assert json.loads((done.folder / "merge.json").read_text())["method"] == "experts (qwen3_moe)"


class TestRouters:
    @pytest.mark.parametrize("mode", ["hidden", "hidden_last", "hidden_avg"])
    def test_from_hidden_states(self, mode: str, models: Path, tmp_path: Path) -> None:
        base = models / "qwen3-0"
        experts = [
            {"source_model": str(base), "positive_prompts": [RAIN, JAZZ], "negative_prompts": ["salt"]},
            {"source_model": str(models / "qwen3-1"), "positive_prompts": ["a canoe"]},
        ]
        held = tiny.tensors(build(tmp_path, base_model=str(base), gate_mode=mode, experts=experts))
        for layer in range(3):
            first = self._mean(base, layer, mode, RAIN, JAZZ) - self._mean(base, layer, mode, "salt")
            expected = torch.stack([unit(first), unit(self._mean(base, layer, mode, "a canoe"))])
            router = held[f"model.layers.{layer}.mlp.gate.weight"]
            assert torch.allclose(router, expected, atol=1e-5)

    @staticmethod
    def _mean(base: Path, layer: int, mode: str, *prompts: str) -> Tensor:
        model, found = load(base), []
        with torch.no_grad():
            for prompt in prompts:
                state = model(input_ids=ids(prompt)[None], output_hidden_states=True).hidden_states[layer][0]
                found.append(state.mean(0) if mode == "hidden_avg" else state[-1])
        return torch.stack(found).mean(0)

    def test_from_embeddings(self, models: Path, tmp_path: Path) -> None:
        base = models / "llama-0"
        experts = [
            {"source_model": str(base), "positive_prompts": [RAIN, JAZZ], "negative_prompts": "salt"},
            {"source_model": str(base), "positive_prompts": ["a canoe"]},
        ]
        held = tiny.tensors(build(tmp_path, base_model=str(base), gate_mode="cheap_embed", experts=experts))
        rows = held["model.embed_tokens.weight"]
        positive = unit(rows[torch.cat([ids(RAIN), ids(JAZZ)])].sum(0))
        expected = unit(positive - unit(rows[ids("salt")].sum(0)))
        for layer in range(3):
            assert torch.allclose(held[f"model.layers.{layer}.block_sparse_moe.gate.weight"][0], expected, atol=1e-6)

    def test_by_chance_follow_from_the_seed(self, models: Path, tmp_path: Path) -> None:
        base = models / "qwen3-0"
        value = {"base_model": str(base), "gate_mode": "random", "experts": of(*[base] * 40)}
        found = [
            tiny.tensors(build(tmp_path / str(number), How(seed=seed, threads=threads, proof="files"), **value))
            for number, (seed, threads) in enumerate([(1, 1), (1, 3), (2, 1)])
        ]
        routers = [torch.stack([held[f"model.layers.{n}.mlp.gate.weight"] for n in range(3)]) for held in found]
        assert torch.equal(routers[0], routers[1])
        assert not torch.isclose(routers[0], routers[2]).any(dim=-1).all()
        assert abs(float(routers[0].std()) - 1) < 0.05
        assert not torch.equal(routers[0][0], routers[0][1])

    def test_those_that_are_alike_are_told(self, models: Path, tmp_path: Path) -> None:
        base = models / "qwen3-0"
        experts = [
            {"source_model": str(base), "positive_prompts": [RAIN]},
            {"source_model": str(models / "qwen3-1"), "positive_prompts": [RAIN, RAIN, "what is tin?"]},
        ]
        value = {"base_model": str(base), "gate_mode": "cheap_embed", "experts": experts}
        done = merge(write(tmp_path, **value), tmp_path / "out", How(proof="files"))
        assert any("hardly tell the experts apart" in note for note in done.notes)


def ids(prompt: str) -> Tensor:
    """The ids that mergekit reads: those of the tokenizer's first token and of the text."""
    tokenizer = oracle()
    return torch.tensor(tokenizer((tokenizer.bos_token or "") + prompt, add_special_tokens=False)["input_ids"])


def unit(row: Tensor) -> Tensor:
    return row / row.norm()


def test_noise_tells_equal_experts_apart(models: Path, tmp_path: Path) -> None:
    base = models / "qwen3-0"
    experts = [*of(base), *of(base, noise_scale=0.1)]
    held = tiny.tensors(build(tmp_path, base_model=str(base), gate_mode="random", experts=experts))
    source = tiny.tensors(base)["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(held["model.layers.1.mlp.experts.0.up_proj.weight"], source)
    noise = held["model.layers.1.mlp.experts.1.up_proj.weight"] - source
    assert abs(float(noise.std()) - 0.1) < 0.01


class TestAdapters:
    @staticmethod
    def adapter(base: Path, where: Path, seed: int, targets: list[str]) -> Path:
        torch.manual_seed(seed)
        model = get_peft_model(load(base), LoraConfig(r=2, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_()
        model.save_pretrained(where)
        model.merge_and_unload().save_pretrained(where.with_suffix(".folded"))
        return where

    def test_each_expert_is_the_base_with_its_adapter(self, models: Path, tmp_path: Path) -> None:
        base = models / "qwen3-0"
        targets = ["gate_proj", "up_proj", "down_proj"]
        adapters = [self.adapter(base, tmp_path / f"a{seed}", seed, targets) for seed in range(2)]
        names = [f"{base}+{adapter}" for adapter in adapters]
        held = tiny.tensors(build(tmp_path / "m", base_model=str(base), gate_mode="random", experts=of(*names)))
        for number, adapter in enumerate(adapters):
            folded = tiny.tensors(adapter.with_suffix(".folded"))
            for part in targets:
                own = held[f"model.layers.1.mlp.experts.{number}.{part}.weight"]
                assert torch.allclose(own, folded[f"model.layers.1.mlp.{part}.weight"], atol=1e-6)

    def test_what_all_experts_share_is_refused_or_averaged(self, models: Path, tmp_path: Path) -> None:
        base = models / "qwen3-0"
        adapters = [self.adapter(base, tmp_path / f"a{seed}", seed, ["q_proj", "up_proj"]) for seed in range(2)]
        value = {"base_model": str(base), "gate_mode": "random", "experts": of(*[f"{base}+{a}" for a in adapters])}
        with pytest.raises(Problem, match=r"changes 3 weights outside the MLPs .*self_attn.q_proj.*rest: mean"):
            build(tmp_path / "refused", **value)
        held = tiny.tensors(build(tmp_path / "mean", **value, rest="mean"))
        folded = [tiny.tensors(adapter.with_suffix(".folded")) for adapter in adapters]
        name = "model.layers.2.self_attn.q_proj.weight"
        assert torch.allclose(held[name], (folded[0][name] + folded[1][name]) / 2, atol=1e-6)
        up = "model.layers.2.mlp.up_proj.weight"
        assert torch.allclose(held["model.layers.2.mlp.experts.1.up_proj.weight"], folded[1][up], atol=1e-6)


def test_faults_come_together_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "experts.yaml"
    file.write_text(
        "base_model: a\ngate_mode: hidden\nexperts_per_tokens: 2\nexperts:\n"
        "  - {source_model: a, positive_promts: [x]}\n  - {source_model: 3}\n"
    )
    with pytest.raises(Problem) as found:
        merge(file, tmp_path / "out")
    told = str(found.value)
    for line, part in ((3, "experts_per_token"), (5, "positive_prompts"), (6, "expected the name of a model")):
        assert f"experts.yaml:{line}" in told
        assert part in told


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"experts_per_token": 3}, "there are 2 experts"),
        ({"gate_mode": "hidden"}, "gate_mode hidden makes the router from prompts"),
        ({"merge_method": "linear"}, "either a merge_method or experts"),
        ({"dtype": "int8"}, "no number type"),
        ({"architecture": "deepseek"}, "no layout 'deepseek'"),
        ({"architecture": "mixtral"}, "is a qwen3 model"),
        ({"shared_experts": [{"source_model": "builtin:seedling"}]}, "layout has none"),
        ({"rest": "median"}, "rest"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    value = {"base_model": "builtin:seedling", "gate_mode": "random", "experts": of(*["builtin:seedling"] * 2)}
    with pytest.raises(Problem, match=said):
        build(tmp_path, **{**value, **changes})
    assert not (tmp_path / "out").exists()


def test_prompts_that_say_nothing_are_refused(tmp_path: Path) -> None:
    same = {"experts": of(*["builtin:seedling"] * 2, positive_prompts=["x"])}
    with pytest.raises(Problem, match="all have the same prompts"):
        build(tmp_path, base_model="builtin:seedling", **same)
    with pytest.raises(Problem, match="no effect with gate_mode random"):
        build(tmp_path, base_model="builtin:seedling", gate_mode="random", **same)


def test_experts_must_fit_their_base(models: Path, tmp_path: Path) -> None:
    tiny.folder(tmp_path / "wide", "qwen3", intermediate_size=64)
    for other, said in (
        (tmp_path / "wide", r"is \[64, 32\], and in the base \[48, 32\]"),
        ("llama-1", "is a llama model"),
    ):
        experts = of(models / "qwen3-0", models / other)
        with pytest.raises(Problem, match=said):
            build(tmp_path, base_model=str(models / "qwen3-0"), gate_mode="random", experts=experts)


def test_a_plan_writes_nothing(models: Path, tmp_path: Path) -> None:
    base = models / "mistral-0"
    file = write(
        tmp_path,
        base_model=str(base),
        gate_mode="hidden",
        experts=of(base, positive_prompts=["x"]),
        experts_per_token=1,
    )
    (found,) = plan(file, tmp_path / "out")
    assert "Mixtral" in found.method
    assert found.tensors == len(tiny.tensors(base)) + 3
    assert any("routers alone cannot learn" in note for note in found.notes)
    assert {path.name for path in tmp_path.iterdir()} == {"experts.yaml"}


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_routers_learn_and_nothing_else_moves(family: str, models: Path, tmp_path: Path) -> None:
    base, other = models / f"{family}-0", models / f"{family}-1"
    out = build(tmp_path, base_model=str(base), gate_mode="uniform_random", experts=of(base, other, other, base))
    result = tiny.trained(
        out,
        tmp_path,
        method={"freeze": {"last": 0, "names": ["*.mlp.gate.weight"]}},
        optimizer={"adamw": {"lr": 0.1}},
        train={"epochs": 8},
    )
    found = tiny.losses(result)
    assert sum(found[-3:]) < sum(found[:3]) - 0.1
    before, after = tiny.tensors(out), tiny.tensors(result.folder.model)
    changed = {
        name.replace("block_sparse_moe", "mlp")
        for name, value in before.items()
        if not torch.equal(value, after.get(name, after.get(name.replace("block_sparse_moe", "mlp"), value + 1)))
    }
    assert changed == {f"model.layers.{layer}.mlp.gate.weight" for layer in range(3)}
    assert not torch.equal(logits(load(result.folder.model)), logits(load(out)))


def test_repeated_blocks_learn_and_the_others_stay(models: Path, tmp_path: Path) -> None:
    """Depth up-scaling: a stack with repeated layers, of which only the repeats learn."""
    base = str(models / "qwen3-0")
    slices = [[0, 2], [1, 3]]
    file = write(
        tmp_path,
        merge_method="passthrough",
        slices=[{"sources": [{"model": base, "layer_range": each}]} for each in slices],
    )
    deeper = merge(file, tmp_path / "deeper", How(proof="files")).folder
    before = tiny.tensors(deeper)
    assert torch.equal(before["model.layers.2.mlp.up_proj.weight"], before["model.layers.1.mlp.up_proj.weight"])
    result = tiny.trained(
        deeper,
        tmp_path,
        method={"expand": {"blocks": [2]}},
        optimizer={"adamw": {"lr": 0.01}},
        train={"epochs": 4},
    )
    after = tiny.tensors(result.folder.model)
    assert load(result.folder.model).config.num_hidden_layers == 4
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed
    assert all(name.startswith("model.layers.2.") for name in changed)
    losses = tiny.losses(result)
    assert losses[-1] < losses[0]


def test_a_recipe_takes_each_layer_from_another_expert(models: Path, tmp_path: Path) -> None:
    """Layer-wise merges: each slice says which models its layers come from."""
    names = [str(models / f"qwen3-{number}") for number in range(2)]
    parts = [[(names[0], 1.0)], [(names[0], 0.25), (names[1], 0.75)], [(names[1], 1.0)]]
    slices = [
        {
            "sources": [
                {"model": name, "layer_range": [layer, layer + 1], "parameters": {"weight": weight}}
                for name, weight in part
            ]
        }
        for layer, part in enumerate(parts)
    ]
    file = write(tmp_path, merge_method="linear", slices=slices)
    held = tiny.tensors(merge(file, tmp_path / "out", How(proof="files")).folder)
    sources = [tiny.tensors(Path(name)) for name in names]
    for layer, weights in enumerate(([1.0, 0.0], [0.25, 0.75], [0.0, 1.0])):
        key = f"model.layers.{layer}.mlp.down_proj.weight"
        expected = sum(weight * source[key] for weight, source in zip(weights, sources, strict=True))
        assert torch.allclose(held[key], expected, atol=1e-6)
