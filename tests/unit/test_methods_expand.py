"""Block expansion and BitFit: which weights are there, which of them learn, and what transformers loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from made_methods import TOKENS, learn, logits, method_of, shake, size, t5
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith.core.problem import Problem
from tunesmith.methods import trainable
from tunesmith.methods._blocks import single_stack
from tunesmith.models.probe import choose_attention

LIKE_LLAMA = ("llama", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox", "olmo2", "granite")
FAMILIES = (*LIKE_LLAMA, "cohere", "smollm3", "starcoder2", "mixtral", "qwen3_moe", "bloom", "gpt_oss")
SMOOTH = {"attn_pdrop": 0, "resid_pdrop": 0, "embd_pdrop": 0}


def made(family: str = "llama", **changes: Any) -> Any:
    """A tiny model without dropout."""
    return tiny.model(family, **(SMOOTH if family == "gpt2" else {}), **changes)


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_starts_as_the_model_and_is_it_again_when_off(self, family: str) -> None:
        model, method = made(family), method_of("expand")
        before = logits(model)
        trained = method.apply(model)
        depth = model.config.num_hidden_layers
        assert torch.equal(logits(trained), before)
        shake(trained)
        assert size(logits(trained) - before) > 1e-3
        with method.off(trained):
            assert torch.equal(logits(trained), before)
            assert model.config.num_hidden_layers == depth - 2
        assert model.config.num_hidden_layers == depth

    def test_transformers_loads_what_is_saved_and_generates_the_same(self, family: str, tmp_path: Path) -> None:
        model, method = made(family), method_of("expand")
        trained = method.apply(model)
        shake(trained)
        method.save(trained, tmp_path)
        again: Any = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert again.config.num_hidden_layers == len(single_stack(again, "")[1]) == len(single_stack(model, "")[1])
        assert torch.equal(logits(again), logits(trained))
        options: dict[str, Any] = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        answers = [
            part.generate(input_ids=TOKENS, use_cache=cache, **options)
            for part in (again, model)
            for cache in (True, False)
        ]
        assert all(torch.equal(answer, answers[0]) for answer in answers)


@pytest.mark.parametrize(
    ("layers", "new", "sources"),
    [
        (3, 2, [0, 1, 1, 2, 2]),
        (3, 1, [0, 1, 2, 2]),
        (3, 3, [0, 0, 1, 1, 2, 2]),
        (6, 2, [0, 1, 2, 2, 3, 4, 5, 5]),
        (8, 2, [0, 1, 2, 3, 3, 4, 5, 6, 7, 7]),
    ],
)
def test_new_blocks_are_copies_after_the_end_of_each_group(layers: int, new: int, sources: list[int]) -> None:
    old = made(num_hidden_layers=layers)
    grown = made(num_hidden_layers=layers)
    method_of("expand", new=new).apply(grown)
    stack = grown.model.layers
    assert len(stack) == len(sources)
    for number, source in enumerate(sources):
        fresh = number > 0 and sources[number - 1] == source
        assert stack[number].self_attn.layer_idx == number
        for name, weight in stack[number].named_parameters():
            assert weight.requires_grad == fresh
            zeroed = fresh and name in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            expected = old.model.layers[source].get_parameter(name)
            assert torch.equal(weight, torch.zeros_like(weight) if zeroed else expected)


def test_kinds_of_layers_go_with_their_blocks() -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    model = made("gemma3_text", num_hidden_layers=4, layer_types=kinds)
    trained = method_of("expand", new=2).apply(model)
    assert model.config.layer_types == [kinds[source] for source in (0, 1, 1, 2, 3, 3)]
    assert [bool(block.self_attn.is_sliding) for block in model.model.layers] == [
        kind == "sliding_attention" for kind in model.config.layer_types
    ]
    with method_of("expand", new=2).off(trained):
        assert model.config.layer_types == kinds


def test_new_blocks_follow_the_models_choice_of_attention() -> None:
    """Chosen after they were made, forest attention keeps trees apart in them too."""
    model = tiny.model("llama")
    trained = method_of("expand", new=1).apply(model)
    with torch.no_grad():
        for weight in trained.parameters():
            if weight.requires_grad:
                weight.add_(0.3 * torch.randn_like(weight))
    assert choose_attention(model, "auto").forest


def test_only_new_blocks_move_and_the_loss_falls() -> None:
    model, method = made(), method_of("expand")
    trained = method.apply(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = learn(model, trained, method, 12)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == set(trainable(trained))
    assert {name.split(".")[2] for name in moved} == {"2", "4"}
    assert losses[-1] < losses[0] - 0.05


def test_blocks_of_a_passthrough_merge_learn_and_no_new_ones_are_made() -> None:
    model, method = made(num_hidden_layers=5), method_of("expand", blocks=[2, 4])
    trained = method.apply(model)
    assert model.config.num_hidden_layers == 5
    assert {name.split(".")[2] for name in trainable(trained)} == {"2", "4"}
    assert not method.reversible
    with pytest.raises(Problem, match="precomputed"):
        method.off(trained)


def test_a_run_ends_with_a_plain_model_that_a_fresh_process_loads(tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base", "qwen3")
    result = tiny.trained(base, tmp_path, "dpo", method="expand", optimizer={"adamw": {"lr": 3e-3}})
    assert {file.suffix for file in result.folder.model.iterdir()} <= {".json", ".safetensors", ".jinja"}
    assert tiny.moved(result, base) > 1e-3
    code = (
        "import sys, torch; from safetensors.torch import save_file; from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()\n"
        "with torch.no_grad():\n"
        "    out = model(input_ids=torch.arange(3, 43).reshape(2, 20), use_cache=False).logits.contiguous()\n"
        "save_file({'out': out, 'layers': torch.tensor(model.config.num_hidden_layers)}, sys.argv[2])\n"
        "assert not [name for name in sys.modules if name.startswith('tunesmith')]\n"
    )
    command = [sys.executable, "-c", code, str(result.folder.model), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = load_file(tmp_path / "out")
    assert int(found["layers"]) == 5 == len(AutoConfig.from_pretrained(result.folder.model).layer_types)
    model = tiny.model("qwen3")
    method_of("expand").apply(model)
    model.load_state_dict(tiny.tensors(result.folder.model), strict=False)
    assert size(found["out"] - logits(model)) <= 1e-5 * size(found["out"])


def test_a_bfloat16_base_stays_bfloat16_and_its_new_blocks_learn_in_float32(tmp_path: Path) -> None:
    model = made().to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    method = method_of("expand")
    trained = method.apply(model)
    kinds = {weight.requires_grad: weight.dtype for weight in trained.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    method.save(trained, tmp_path)
    assert {value.dtype for value in tiny.tensors(tmp_path).values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("family", "changes", "options", "words"),
    [
        ("llama", {}, {"new": 4}, r"is 4, and LlamaForCausalLM has 3 blocks to copy. Use 3 or less"),
        ("llama", {}, {"blocks": [1, 3]}, r"names block 3, and LlamaForCausalLM has the blocks 0 to 2"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, {}, "loaded again, 2.attn.scaling would be"),
        ("mamba", {}, {}, "output layers whose names are not known"),
        ("falcon_h1", {}, {}, "change what it computes"),
    ],
)
def test_expand_refuses(family: str, changes: dict[str, Any], options: dict[str, Any], words: str) -> None:
    with pytest.raises(Problem, match=words):
        method_of("expand", **options).apply(made(family, **changes))


def test_expand_refuses_an_encoder_and_decoder() -> None:
    with pytest.raises(Problem, match="an encoder and a decoder"):
        method_of("expand").apply(t5())


def test_expand_refuses_what_would_be_loaded_as_another_model() -> None:
    """Blocks whose kind follows from their number, where the configuration has no list of kinds."""
    model = made("qwen3_moe", num_hidden_layers=4, decoder_sparse_step=2)
    with pytest.raises(Problem, match=r"loaded again, .* would be"):
        method_of("expand", new=2).apply(model)


class TestBitfit:
    @pytest.mark.parametrize(("family", "biases"), [("gpt2", 19), ("qwen2", 9), ("gpt_neox", 19), ("starcoder2", 25)])
    def test_every_bias_learns_and_nothing_else(self, family: str, biases: int) -> None:
        model, method = made(family), method_of("bitfit")
        trained = method.apply(model)
        learns = set(trainable(trained))
        assert len(learns) == biases
        assert learns == {name for name, _ in made(family).named_parameters() if name.endswith(".bias")}
        before = {name: value.clone() for name, value in model.state_dict().items()}
        losses = learn(model, trained, method, 12)
        moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert moved <= learns
        assert len(moved) >= biases - 3  # a bias of keys shifts all scores of a query alike, so it has no gradient
        assert losses[-1] < losses[0] - 0.02

    @pytest.mark.parametrize(
        ("parts", "words"), [("norms", ("layernorm", ".norm.")), ("both", ("layernorm", ".norm.", "bias"))]
    )
    def test_norms_learn_where_they_are_asked_for(self, parts: str, words: tuple[str, ...]) -> None:
        model = made("qwen2")
        learns = trainable(method_of("bitfit", parts=parts).apply(model))
        assert set(learns) == {name for name, _ in model.named_parameters() if any(word in name for word in words)}

    @pytest.mark.parametrize("model", [tiny.model(), tiny.model("qwen3"), t5()], ids=["llama", "qwen3", "t5"])
    def test_a_model_without_biases_is_refused_and_what_it_has_is_named(self, model: Any) -> None:
        with pytest.raises(Problem, match=r"has no biases; it has \d+ weights of norms, such as .*Set parts: norms"):
            method_of("bitfit").apply(model)
        learns = trainable(method_of("bitfit", parts="norms").apply(model))
        assert learns
        assert all("norm" in name for name in learns)

    def test_a_score_head_learns_too(self, tmp_path: Path) -> None:
        base = tiny.folder(tmp_path / "base", "gpt2")
        result = tiny.trained(base, tmp_path, "reward", method="bitfit", optimizer={"adamw": {"lr": 1e-2}})
        before, after = tiny.tensors(base), tiny.tensors(result.folder.model)
        prefixed = {f"transformer.{name}" if f"transformer.{name}" in after else name for name in before}
        assert "score.weight" in after
        assert set(after) - prefixed <= {"score.weight"}
        assert tiny.losses(result)[-1] < tiny.losses(result)[0]
