"""What the methods through PEFT promise beyond the contract: memory, learning rates, ranks that move, first values."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from made_methods import NextToken, logits, method_of, policy_of, size
from peft import AdaLoraConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor, nn

from tunesmith.core.plugins import build
from tunesmith.core.problem import Problem
from tunesmith.core.run import ModelSpec
from tunesmith.merge.fold import fold
from tunesmith.methods import Method, trainable
from tunesmith.methods._through_peft import heeded
from tunesmith.models.directions import principal_inputs
from tunesmith.models.load import load
from tunesmith.models.policy import Policy
from tunesmith.train.record import read_record

PREFIX = "base_model.model."


def kept_bytes(method: Method) -> int:
    """Bytes that autograd keeps for the backward pass of a batch, without those of weights."""
    model = tiny.model()
    trained = method.apply(model)
    trained.train()
    own = {weight.untyped_storage().data_ptr() for weight in (*trained.parameters(), *trained.buffers())}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    batch = tiny.forest(seed=1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = Policy(model, forest=False, trained=trained).hidden(batch, batch.targets.source, batch.targets.row)
    found = sum(storage.nbytes() for storage in kept.values())
    del hidden
    return found


class TestLoraFa:
    def test_keeps_less_for_the_backward_pass_than_lora_and_not_the_inputs_of_its_layers(self) -> None:
        """Of 7 layers a block, LoRA keeps 4 inputs that nothing else does; each has 32 or 48 numbers a token."""
        lora, frozen = (kept_bytes(method_of(name, rank=2)) for name in ("lora", "lora_fa"))
        padded = tiny.forest(seed=1).padded().tokens.numel()
        assert lora - frozen >= 3 * padded * 4 * 32
        assert frozen < 0.8 * lora

    def test_trains_only_the_second_matrix_and_saves_a_plain_lora(self, tmp_path: Path) -> None:
        method = method_of("lora_fa", rank=4)
        trained = method.apply(tiny.model())
        assert all(".lora_B." in name for name in trainable(trained))
        method.save(trained, tmp_path)
        assert json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))["peft_type"] == "LORA"
        again = method_of("lora", rank=4).adopt(tiny.model(), tmp_path)
        assert any(".lora_A." in name for name in trainable(again))

    def test_its_frozen_matrices_are_part_of_a_checkpoint(self) -> None:
        method = method_of("lora_fa", rank=4)
        first, second = method.apply(tiny.model()), method.apply(tiny.model())
        method.restore(second, {name: value.clone() for name, value in method.state(first).items()})
        left, right = method.state(first), method.state(second)
        assert left
        assert all(torch.equal(value, right[name]) for name, value in left.items())


class TestAdaLora:
    OPTIONS: dict[str, Any] = {"rank": 2, "start_rank": 4, "warm": 0.2, "settle": 0.3, "orthogonality": 0.1}

    def test_the_budget_moves_in_a_run_and_is_told_saved_and_loaded(self, tmp_path: Path) -> None:
        base = tiny.folder(tmp_path / "base")
        options = {"method": {"adalora": self.OPTIONS}, "optimizer": {"adamw": {"lr": 2e-2}}, "train": {"epochs": 4}}
        result = tiny.trained(base, tmp_path, **options)
        lines = read_record(result.folder)["method_report"]
        assert lines[0].startswith("ranks: 2.0 on average of 4 at the start")
        ranks = {line.partition(": rank ")[0]: int(line.partition(": rank ")[2]) for line in lines[1:]}
        assert sum(ranks.values()) == 2 * len(ranks)
        assert len(set(ranks.values())) > 1
        assert any(event.values["text"] == lines[0] for event in tiny.events(result, "note"))
        pattern = json.loads((result.folder.model / "adapter_config.json").read_text("utf-8"))["rank_pattern"]
        assert {name.removesuffix(".lora_E"): sum(kept) for name, kept in pattern.items()} == ranks
        saved = tiny.tensors(result.folder.model)
        assert {
            n.removeprefix(PREFIX).removesuffix(".lora_E"): len(v) for n, v in saved.items() if "lora_E" in n
        } == ranks

    def test_moves_as_peft_does_where_its_loop_is_told_to(self) -> None:
        """PEFT's model with its own penalty and its own calls, step by step."""
        torch.manual_seed(0)
        ours, method = tiny.model(), method_of("adalora", **{**self.OPTIONS, "targets": ["q_proj", "down_proj"]})
        trained = method.apply(ours)
        policy = policy_of(ours, trained, forest=False)
        method.begin(policy, iter(()), 10)
        torch.manual_seed(0)
        config = AdaLoraConfig(
            task_type=TaskType.CAUSAL_LM, target_r=2, init_r=4, lora_alpha=16, tinit=2, tfinal=3, total_step=10,
            orth_reg_weight=0.1, target_modules=["q_proj", "down_proj"],
        )  # fmt: skip
        theirs: Any = get_peft_model(tiny.model(), config)
        theirs.load_state_dict(trained.state_dict())
        tokens = torch.randint(3, 200, (1, 40))
        optimizers = [torch.optim.AdamW(trainable(model).values(), lr=2e-2) for model in (trained, theirs)]
        formula = _Labels(tokens)
        trained.train(), theirs.train()
        for step in range(10):
            optimizers[0].zero_grad()
            method.loss(policy, tiny.forest(), formula)[0].backward()  # type: ignore[no-untyped-call, arg-type]
            optimizers[0].step()
            method.after_step(trained, step)
            optimizers[1].zero_grad()
            theirs(input_ids=tokens, labels=tokens).loss.backward()
            optimizers[1].step()
            theirs.base_model.update_and_allocate(step + 1)
        left, right = trainable(trained), trainable(theirs)
        assert all(torch.allclose(value, right[name], atol=1e-5) for name, value in left.items())
        assert any(bool((value == 0).any()) for name, value in left.items() if "lora_E" in name)

    def test_its_penalty_is_not_in_what_validation_measures(self) -> None:
        model, method = tiny.model(), method_of("adalora")
        policy = policy_of(model, method.apply(model))
        batch, formula = tiny.forest(), NextToken()
        plain = float(formula.loss(policy, batch)[0].detach())
        policy.trained.train()
        assert float(method.loss(policy, batch, formula)[0].detach()) > plain + 0.1 * formula.count(batch)
        policy.trained.eval()
        assert float(method.loss(policy, batch, formula)[0].detach()) == pytest.approx(plain, rel=1e-6)

    def test_settles_its_ranks_even_if_the_step_that_does_was_skipped(self) -> None:
        model, method = tiny.model(), method_of("adalora", **self.OPTIONS)
        trained = method.apply(model)
        policy = policy_of(model, trained)
        method.begin(policy, iter(()), 10)
        optimizer = torch.optim.AdamW(trainable(trained).values(), lr=2e-2)
        trained.train()
        for step in (0, 1, 2, 3, 4, 5, 8, 9):
            optimizer.zero_grad()
            method.loss(policy, tiny.forest(), NextToken())[0].backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            method.after_step(trained, step)
        assert method.report(trained)[0].startswith("ranks: 2.0 on average")

    @pytest.mark.parametrize(
        ("options", "word"),
        [({"rank": 4, "start_rank": 4}, "no rank could move"), ({"warm": 0.5, "settle": 0.5}, "no steps")],
    )
    def test_refuses_a_budget_that_cannot_move(self, options: dict[str, Any], word: str) -> None:
        with pytest.raises(Problem, match=word):
            method_of("adalora", **options)

    def test_refuses_a_run_that_is_too_short(self) -> None:
        model, method = tiny.model(), method_of("adalora", warm=0.9, settle=0.05)
        with pytest.raises(Problem, match="steps leave none"):
            method.begin(policy_of(model, method.apply(model)), iter(()), 1)


class _Labels:
    """transformers' own loss over some tokens, as a formula."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def count(self, batch: object) -> float:
        return 1.0

    def loss(self, policy: Policy, batch: object) -> tuple[Tensor, dict[str, Tensor]]:
        loss: Any = policy.model(input_ids=self.tokens, labels=self.tokens)
        return loss.loss, {}


class TestEva:
    def test_directions_are_those_of_a_whole_decomposition(self) -> None:
        """Of centred inputs; layers that read the same tensor share them."""
        torch.manual_seed(0)
        shape = torch.randn(24, 16) * torch.logspace(0, -2, 16)
        data = [torch.randn(40, 24) @ shape for _ in range(6)]
        model = nn.ModuleList([nn.Linear(16, 3), nn.Linear(16, 5)])

        def run(rows: Any) -> None:
            for layer in model:
                layer(rows)

        layers = {str(number): (layer, 4) for number, layer in enumerate(model)}
        found = principal_inputs(run, model, layers, data)  # type: ignore[arg-type]
        whole = torch.cat(data)
        _, sizes, right = torch.linalg.svd(whole - whole.mean(0), full_matrices=False)
        assert (found["0"].vectors * right[:4]).sum(1).abs().min() > 0.99
        assert torch.allclose(found["0"].shares.float(), (sizes**2 / (sizes**2).sum())[:4], atol=2e-2)
        assert torch.equal(found["0"].vectors, found["1"].vectors)

    def test_starts_along_the_inputs_of_each_layer_and_at_identity(self) -> None:
        model, method = tiny.model(), method_of("lora", start="eva", rank=4)
        before = logits(model)
        trained = method.apply(model)
        policy, inputs = policy_of(model, trained), list[Tensor]()
        layer = model.model.layers[1].mlp.down_proj
        handle = layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0].flatten(0, -2)))
        data = [tiny.forest(seed=seed) for seed in range(8)]
        method.begin(policy, iter(data), 8)
        handle.remove()
        assert size(logits(trained) - before) <= 1e-5 * size(before)
        rows = torch.cat(inputs).float()
        rows = rows - rows.mean(0)
        own = layer.lora_A["default"].weight.detach()
        assert torch.allclose(own @ own.T, torch.eye(4), atol=1e-4)
        best = torch.linalg.svdvals(rows)[:4].square().sum()
        assert (rows @ own.T).square().sum() > 0.9 * best

    def test_spreads_ranks_within_the_budget_and_says_how(self, tmp_path: Path) -> None:
        base = tiny.folder(tmp_path / "base")
        method = {"lora": {"start": "eva", "rank": 3, "ranks": "by_variance"}}
        result = tiny.trained(base, tmp_path, method=method)
        config = json.loads((result.folder.model / "adapter_config.json").read_text("utf-8"))
        lines = read_record(result.folder)["method_report"]
        ranks = [int(line.rpartition(" ")[2]) for line in lines[1:]]
        assert sum(ranks) == 3 * 21
        assert config["rank_pattern"]
        assert max(ranks) <= 6

    def test_refuses_data_with_fewer_tokens_than_directions(self) -> None:
        model, method = tiny.model(), method_of("lora", start="eva", rank=16)
        with pytest.raises(Problem, match="needs 32 tokens"):
            method.begin(policy_of(model, method.apply(model)), iter([tiny.pairs(1)]), 1)


class TestLoftQ:
    def test_makes_up_for_what_quantising_lost(self, tmp_path: Path) -> None:
        """The change of each layer is the best of its rank: no other leaves less of what was lost."""
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra quantize)")
        from tunesmith.models.quantize import plain_weight

        base = tiny.folder(tmp_path / "base")
        spec = ModelSpec(path=str(base), quantize="nf4", device="cpu", dtype="float32")
        loaded, plain = load(spec), tiny.model()
        lost_before = size(logits(loaded.model) - logits(plain))
        loaded.model.name_or_path = str(base)
        method = method_of("lora", start="loftq", rank=8)
        trained = method.apply(loaded.model)
        layer: Any = loaded.model.model.layers[0].self_attn.q_proj
        held = plain_weight(layer.base_layer)
        assert held is not None
        lost = plain.model.layers[0].self_attn.q_proj.weight.detach() - held
        left = lost - layer.get_delta_weight("default").detach()
        assert float(left.norm()) == pytest.approx(float(torch.linalg.svdvals(lost)[8:].norm()), rel=1e-3)
        assert size(logits(trained) - logits(plain)) < lost_before
        with method.off(trained):
            assert size(logits(trained) - logits(plain)) == pytest.approx(lost_before)

    def test_is_refused_over_a_plain_base_before_anything_is_loaded(self, tmp_path: Path) -> None:
        base = tiny.folder(tmp_path / "base")
        with pytest.raises(Problem, match="needs a quantised base"):
            tiny.trained(base, tmp_path, method={"lora": {"start": "loftq"}})


REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("lora", {"targets": ["lm_head"]}, {"tie_word_embeddings": True}, "shares its weights"),
    ("lora", {"targets": ["embed_tokens"]}, {"tie_word_embeddings": True}, "shares its weights"),
    ("lora_fa", {"targets": ["lm_head"]}, {"tie_word_embeddings": True}, "shares its weights"),
    ("loha", {"targets": ["q_prog"]}, {}, "Did you mean 'q_proj'"),
    ("vera", {"targets": ["mlp"]}, {}, "is a LlamaMLP"),
    ("adalora", {"start_rank": 40, "targets": ["q_proj"]}, {}, "40 is more than model.layers.0.self_attn.q_proj"),
    ("lora", {"rank": 17, "targets": ["k_proj"]}, {}, "Use 16 or less"),
    ("lora", {"rank": 64}, {}, "64 is more than"),
    ("lora_plus", {"start": "olora", "rank": 4}, {"family": "gpt2"}, "olora does not work"),
    ("lora", {"start": "eva", "targets": ["embed_tokens"]}, {}, "not for embeddings"),
    ("oft", {"block_size": 32}, {}, "Sizes near it that do: 16, 24, 48"),
    ("boft", {"block_size": 5}, {}, "does not divide"),
    ("ia3", {"targets": ["k_proj"], "feedforward": ["down_proj"]}, {}, "is not among the targets"),
    ("lokr", {}, {"family": "gpt2"}, "Conv1D"),
    ("lora", {"targets": ["shared"]}, {"family": "t5", "tie_word_embeddings": True}, "shares its weights"),
    ("lora", {"targets": ["score"]}, {"head": "score"}, "is the head, which learns whole"),
]


@pytest.mark.parametrize(("name", "options", "model", "words"), REFUSED)
def test_what_does_not_fit_is_refused_with_what_would(
    name: str, options: dict[str, Any], model: dict[str, Any], words: str
) -> None:
    with pytest.raises(Problem) as caught:
        method_of(name, **options).apply(tiny.model(**model))
    assert words in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": "dora", "start": "pissa"}, "do not go together"),
        ({"start": "orthogonal", "rank": 3}, "even rank"),
        ({"ranks": "by_variance"}, "needs the start eva"),
    ],
)
def test_options_that_contradict_each_other_are_refused_in_the_run_file(options: dict[str, Any], words: str) -> None:
    with pytest.raises(Problem, match=words):
        build("method", {"lora": options})


def test_boft_refuses_what_peft_would_pass_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    with pytest.raises(Problem, match="PEFT would use 1"):
        method_of("boft", butterflies=2).apply(tiny.model())


def test_a_warning_of_peft_is_a_refusal_and_any_other_goes_on() -> None:
    peft_file = str(Path(json.__file__).parent)  # any file that is not PEFT's
    with pytest.warns(UserWarning, match="from elsewhere"), heeded("place"):
        warnings.warn_explicit("from elsewhere", UserWarning, peft_file, 1)
    model = get_peft_model(tiny.model(), AdaLoraConfig(task_type=TaskType.CAUSAL_LM, total_step=3))
    with pytest.raises(Problem, match=r"place: PEFT would pass over something: .*unmerged"), heeded("place"):
        model.base_model.unmerge_adapter()  # type: ignore[operator]


@pytest.mark.parametrize("options", [{"scaling": "rank_stabilized"}, {"form": "dora"}])
def test_forms_of_lora_fold_into_what_peft_computes(options: dict[str, Any], tmp_path: Path) -> None:
    """Saved, loaded by PEFT alone, and merged there: the same as the fold."""
    model, method = tiny.model(), method_of("lora", rank=4, **options)
    trained = method.apply(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in trainable(trained).values():
            weight.add_(0.1 * torch.randn_like(weight))
    method.save(trained, tmp_path)
    theirs = PeftModel.from_pretrained(tiny.model(), str(tmp_path)).merge_and_unload()  # type: ignore[operator]
    ours = method.fold(trained)
    assert size(logits(ours) - logits(theirs)) <= 1e-6 * size(logits(theirs))


def test_a_run_says_where_a_method_does_not_start_as_the_model(tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    options = {"vector_length": 8, "num_vectors": 16}
    result = tiny.trained(base, tmp_path, method={"peft": {"type": "vblora", "options": options}}, train={"steps": 1})
    texts = [event.values["text"] for event in tiny.events(result, "note")]
    assert any("does not start as the untouched model" in text for text in texts)


def test_what_peft_cannot_fold_is_refused_in_words(tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    result = tiny.trained(base, tmp_path, method={"peft": {"type": "beft"}}, train={"steps": 1})
    with pytest.raises(Problem, match="cannot be folded"):
        fold(str(result.folder.path))
