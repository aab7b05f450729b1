"""What every method keeps: it starts where the model is, moves what it declares, and is saved, loaded and folded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tunesmith.core.plugins import build, names
from tunesmith.core.problem import Problem
from tunesmith.methods import Method, trainable
from tunesmith.models.forest import Batch
from tunesmith.models.policy import Policy
from tunesmith.models.probe import choose_attention
from tunesmith.objectives import next_token_loss

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "freeze": [{}, {"first": 1, "last": 0}, {"last": 0, "names": ["*.1.*"]}, {"last": 1, "head": "learns"}],
    "lora": [
        {},
        {"start": "gaussian"},
        {"start": "orthogonal", "rank": 4},
        {"start": "pissa", "rank": 4},
        {"start": "olora", "rank": 4},
        {"scaling": "rank_stabilized"},
        {"form": "dora"},
        {"dropout": 0.3},
    ],
}
"""Options beside the defaults that are worth the same tests; a method that is not named here has its defaults tried."""
CASES = [
    pytest.param(name, options, family, id=f"{name}-{json.dumps(options, sort_keys=True)}-{family}")
    for name in names("method")
    for options in VARIANTS.get(name, [{}])
    for family in ("llama", "gpt2")
    if (options.get("start"), family) != ("olora", "gpt2")
]
TOKENS = torch.arange(3, 43).reshape(2, 20)


def method_of(name: str, options: dict[str, Any]) -> Method:
    found = build("method", {name: options})
    assert isinstance(found, Method)
    return found


def logits(model: nn.Module) -> Tensor:
    training = model.training
    model.eval()
    with torch.no_grad():
        out = model(input_ids=TOKENS, use_cache=False).logits
    model.train(training)
    return out


def learn(model: PreTrainedModel, trained: nn.Module, method: Method, steps: int, lr: float = 3e-3) -> list[float]:
    """So many steps of AdamW on one forest, each in two micro-batches; the loss before each."""
    policy = Policy(model, forest=choose_attention(model, "auto").forest, trained=trained)
    optimizer = torch.optim.AdamW(method.groups(trained, lr), weight_decay=0.0)
    batches: list[Batch] = [tiny.forest(seed=seed) for seed in (1, 2)]
    count = sum(float(batch.targets.weight.sum()) for batch in batches)
    trained.train()
    torch.manual_seed(0)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        parts = [next_token_loss(policy, batch) / count for batch in batches]
        for part in parts:
            part.backward()
        optimizer.step()
        method.after_step(trained, step)
        losses.append(float(sum(part.detach() for part in parts)))
    return losses


def size(values: Tensor) -> float:
    return float(values.abs().max())


@pytest.mark.parametrize(("name", "options", "family"), CASES)
class TestMethod:
    def test_starts_where_the_model_is(self, name: str, options: dict[str, Any], family: str) -> None:
        model = tiny.model(family)
        before = logits(model)
        after = logits(method_of(name, options).apply(model))
        assert size(after - before) <= 1e-5 * size(before)

    def test_moves_what_it_declares_and_nothing_else(self, name: str, options: dict[str, Any], family: str) -> None:
        model, method = tiny.model(family), method_of(name, options)
        trained = method.apply(model)
        declared = set(trainable(trained))
        before = {name: value.detach().clone() for name, value in trained.state_dict(keep_vars=True).items()}
        learn(model, trained, method, 2)
        after = trained.state_dict(keep_vars=True)
        assert after.keys() == before.keys()
        moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
        tied = {name for name, value in after.items() if any(value is after[other] for other in declared)}
        assert declared
        assert moved
        assert moved <= declared | tied
        assert len(moved & declared) >= 0.4 * len(declared)

    def test_groups_hold_each_weight_that_learns_once(self, name: str, options: dict[str, Any], family: str) -> None:
        method = method_of(name, options)
        trained = method.apply(tiny.model(family))
        grouped = [weight for group in method.groups(trained, 1e-3) for weight in group["params"]]
        assert len({id(weight) for weight in grouped}) == len(grouped)
        assert {id(weight) for weight in grouped} == {id(weight) for weight in trainable(trained).values()}
        assert all(group["lr"] > 0 for group in method.groups(trained, 1e-3))

    def test_learns(self, name: str, options: dict[str, Any], family: str) -> None:
        model, method = tiny.model(family), method_of(name, options)
        losses = learn(model, method.apply(model), method, 12, lr=1e-2)
        assert losses[-1] < losses[0] - 0.1

    def test_off_is_the_untouched_model_bit_for_bit(self, name: str, options: dict[str, Any], family: str) -> None:
        """At the start, after training, and inside of it; or it is refused with what to do."""
        model, method = tiny.model(family), method_of(name, options)
        before = logits(model)
        trained = method.apply(model)
        if not method.reversible:
            with pytest.raises(Problem, match="precomputed"):
                method.off(trained)
            return
        learn(model, trained, method, 3)
        with method.off(trained):
            assert torch.equal(logits(trained), before)
        assert not torch.equal(logits(trained), before)
        reference = Policy(model, forest=False, trained=trained, off=lambda: method.off(trained))
        untouched = Policy(tiny.model(family), forest=False)
        batch = tiny.forest()
        with torch.no_grad():
            expected = untouched.logprobs(batch)
        assert torch.allclose(reference.reference_logprobs(batch), expected, atol=1e-5)

    def test_folds_into_plain_weights(self, name: str, options: dict[str, Any], family: str) -> None:
        model, method = tiny.model(family), method_of(name, options)
        trained = method.apply(model)
        learn(model, trained, method, 3)
        expected = logits(trained)
        folded = method.fold(trained)
        assert isinstance(folded, PreTrainedModel)
        assert set(dict(folded.named_parameters())) == set(dict(tiny.model(family).named_parameters()))
        assert size(logits(folded) - expected) <= 2e-5 * size(expected)

    def test_holds_what_learns_in_float32(self, name: str, options: dict[str, Any], family: str) -> None:
        trained = method_of(name, options).apply(tiny.model(family).to(torch.bfloat16))  # type: ignore[call-arg]
        assert {weight.dtype for weight in trainable(trained).values()} == {torch.float32}

    def test_its_outline_has_the_same_shapes(self, name: str, options: dict[str, Any], family: str) -> None:
        method = method_of(name, options)
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(tiny.config(family))
        outlined = trainable(method.outline().apply(skeleton))
        real = trainable(method.apply(tiny.model(family)))
        assert {name: weight.shape for name, weight in outlined.items()} == {
            name: weight.shape for name, weight in real.items()
        }


LOADER = """\
import json, sys
import torch
from pathlib import Path
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from peft import PeftModel

out = {}
for name, base, saved in json.loads(Path(sys.argv[1]).read_text()):
    adapter = (Path(saved) / "adapter_config.json").exists()
    model = AutoModelForCausalLM.from_pretrained(base if adapter else saved, attn_implementation="sdpa")
    model = PeftModel.from_pretrained(model, saved) if adapter else model
    with torch.no_grad():
        out[name] = model.eval()(input_ids=torch.arange(3, 43).reshape(2, 20)).logits.contiguous()
save_file(out, sys.argv[2])
assert not [name for name in sys.modules if name.startswith("tunesmith")]
"""


def test_what_is_saved_loads_in_a_fresh_process_without_tunesmith(tmp_path: Path) -> None:
    """Every method, after training: transformers and PEFT alone give the same logits; no pickle is written."""
    jobs, expected = [], {}
    for case in CASES:
        name, options, family = case.values
        base, saved = tmp_path / family, tmp_path / f"saved-{len(jobs)}"
        if not base.exists():
            tiny.folder(base, family)
        model, method = AutoModelForCausalLM.from_pretrained(base), method_of(name, options)  # type: ignore[arg-type]
        trained = method.apply(model)
        learn(model, trained, method, 3)
        method.save(trained, saved)
        assert {file.suffix for file in saved.iterdir()} <= {".safetensors", ".json"}
        jobs.append((str(case.id), str(base), str(saved)))
        expected[str(case.id)] = logits(trained)
    (tmp_path / "jobs").write_text(json.dumps(jobs), "utf-8")
    (tmp_path / "load.py").write_text(LOADER, "utf-8")
    command = [sys.executable, str(tmp_path / "load.py"), str(tmp_path / "jobs"), str(tmp_path / "out.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = load_file(tmp_path / "out.safetensors")
    for name, values in expected.items():
        assert size(found[name] - values) <= 2e-5 * size(values), name


def test_full_and_freeze_are_saved_in_the_type_of_the_base(tmp_path: Path) -> None:
    """What learned in float32 is rounded once, back to what the base was stored in."""
    base = tmp_path / "base"
    tiny.folder(base)
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    for name in ("full", "freeze"):
        result = tiny.trained(base, tmp_path, method=name, output=name)
        assert {value.dtype for value in tiny.tensors(result.folder.model).values()} == {torch.bfloat16}
        assert json.loads((result.folder.model / "config.json").read_text("utf-8"))["dtype"] == "bfloat16"


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_tied_weights_are_saved_once(family: str, tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base", family, tie_word_embeddings=True)
    result = tiny.trained(base, tmp_path, method="full", optimizer={"adamw": {"lr": 1e-3}})
    assert tiny.tensors(result.folder.model).keys() == tiny.tensors(base).keys()


class TestLora:
    @pytest.mark.parametrize("form", [{}, {"use_dora": True}, {"use_rslora": True}, {"target_modules": ["q_proj"]}])
    def test_goes_on_with_an_adapter_that_peft_wrote(self, form: dict[str, Any], tmp_path: Path) -> None:
        base = tiny.folder(tmp_path / "base")
        settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, "task_type": "CAUSAL_LM"}
        theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**{**settings, **form}))
        theirs.save_pretrained(tmp_path / "adapter")
        expected = logits(theirs)
        model = AutoModelForCausalLM.from_pretrained(base)
        method = method_of("lora", {"rank": 4, "alpha": 8, "form": "dora" if "use_dora" in form else "plain"})
        if "use_rslora" in form:
            method = method_of("lora", {"rank": 4, "alpha": 8, "scaling": "rank_stabilized"})
        trained = method.adopt(model, tmp_path / "adapter")
        assert torch.equal(logits(trained), expected)
        losses = learn(model, trained, method, 8, lr=1e-2)
        assert losses[-1] < losses[0]
        method.save(trained, tmp_path / "again")
        again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "again"))
        assert size(logits(again) - logits(trained)) <= 1e-6 * size(expected)

    @pytest.mark.parametrize(
        ("asked", "word"),
        [
            ({"rank": 8}, "rank"),
            ({"rank": 4, "alpha": 16}, "alpha"),
            ({"rank": 4, "alpha": 8, "form": "dora"}, "form"),
            ({"rank": 4, "alpha": 8, "scaling": "rank_stabilized"}, "scaling"),
            ({"rank": 4, "alpha": 8, "targets": ["v_proj"]}, "targets"),
            ({"rank": 4, "alpha": 8, "start": "pissa"}, "start"),
        ],
    )
    def test_refuses_options_that_the_adapter_cannot_have(
        self, asked: dict[str, Any], word: str, tmp_path: Path
    ) -> None:
        model = tiny.model()
        config = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", target_modules=["q_proj"])
        get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
        with pytest.raises(Problem, match=f"method.lora.{word}"):
            method_of("lora", asked).adopt(tiny.model(), tmp_path / "adapter")

    def test_dropout_of_the_run_holds_for_an_adapter_that_is_gone_on_with(self, tmp_path: Path) -> None:
        config = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", target_modules=["q_proj"], lora_dropout=0.1)
        get_peft_model(tiny.model(), config).save_pretrained(tmp_path / "adapter")
        trained = method_of("lora", {"rank": 4, "alpha": 8, "dropout": 0.4}).adopt(tiny.model(), tmp_path / "adapter")
        shares = {module.p for module in trained.modules() if isinstance(module, nn.Dropout)}
        assert shares == {0.4}

    def test_a_run_goes_on_with_a_run(self, tmp_path: Path) -> None:
        base = tiny.folder(tmp_path / "base")
        first = tiny.trained(base, tmp_path, optimizer={"adamw": {"lr": 3e-3}}, output="first")
        second = tiny.trained(first.folder.path, tmp_path, optimizer={"adamw": {"lr": 3e-3}}, output="second")
        assert tiny.losses(second)[0] < tiny.losses(first)[0]
        assert tiny.losses(second)[-1] < tiny.losses(first)[-1]

    def test_refuses_a_target_that_is_tied_to_the_other_end(self) -> None:
        with pytest.raises(Problem, match="shares its weights"):
            method_of("lora", {"targets": ["lm_head"]}).apply(tiny.model(tie_word_embeddings=True))

    def test_refuses_a_start_that_does_not_fit_the_layers(self) -> None:
        with pytest.raises(Problem, match="olora does not work"):
            method_of("lora", {"start": "olora", "rank": 4}).apply(tiny.model("gpt2"))

    def test_names_the_nearest_target(self) -> None:
        with pytest.raises(Problem, match="q_proj"):
            method_of("lora", {"targets": ["q_prog"]}).apply(tiny.model())

    def test_refuses_what_peft_refuses_in_a_paragraph(self) -> None:
        with pytest.raises(Problem, match="Mamba"):
            method_of("lora", {}).apply(tiny.model("mamba"))
