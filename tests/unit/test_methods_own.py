"""Methods with adapters of tunesmith's own: what they share, from the first step to the saved file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from made_methods import NextToken, learn, logits, method_of, policy_of, shake, size
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tunesmith.cli.closing import next_commands
from tunesmith.core.events import Event
from tunesmith.core.problem import Problem
from tunesmith.core.run import ModelSpec
from tunesmith.generate.opened import open_model, put_on
from tunesmith.merge.fold import fold
from tunesmith.methods import trainable
from tunesmith.methods._own import OwnMethod, saved_method
from tunesmith.models.heads import HeadSpec
from tunesmith.models.quantize import Held
from tunesmith.train.verb import resume, train

OWN: dict[str, list[dict[str, Any]]] = {
    "bottleneck": [{}, {"place": "houlsby", "curve": "gelu"}, {"place": "parallel", "scale": 4.0}],
    "mixture_of_depths": [{}, {"learns": "routers"}, {"learns": "all", "capacity": 0.25}],
    "medusa": [{}, {"vocabulary": "own", "heads": 2}, {"base": "learns"}],
}
CASES = [pytest.param(name, options, id=f"{name}-{json.dumps(options)}") for name in OWN for options in OWN[name]]
SCORING = ("bottleneck", "mixture_of_depths")
PLAIN = {"bitfit": {"parts": "norms"}, "expand": {}}


def own_method(name: str, options: dict[str, Any]) -> OwnMethod:
    found = method_of(name, **options)
    assert isinstance(found, OwnMethod)
    return found


def saved(model: Any, name: str, options: dict[str, Any], folder: Path) -> Any:
    """A model on which the method has learned, saved; the wrapper."""
    method = own_method(name, options)
    trained = method.apply(model)
    learn(model, trained, method, 3)
    method.save(trained, folder)
    return trained


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_starts_as_the_model_and_is_it_again_when_off(name: str, options: dict[str, Any], family: str) -> None:
    model, method = tiny.model(family), own_method(name, options)
    before = logits(model)
    trained = method.apply(model)
    assert torch.equal(logits(trained), before)
    if not method.reversible:
        with pytest.raises(Problem, match="precomputed"):
            method.off(trained)
        return
    shake(trained, 0.5)
    with method.off(trained):
        assert torch.equal(logits(trained), before)
    if name != "medusa":
        assert size(logits(trained) - before) > 1e-3


@pytest.mark.parametrize(("name", "options"), CASES)
def test_moves_what_it_declares_and_the_loss_falls(name: str, options: dict[str, Any]) -> None:
    model, method = tiny.model(), own_method(name, options)
    trained = method.apply(model)
    declared = set(trainable(trained))
    before = {key: value.detach().clone() for key, value in trained.state_dict().items()}
    losses = learn(model, trained, method, 12, lr=3e-2)
    moved = {key for key, value in trained.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == declared
    assert losses[-1] < losses[0] - 0.02


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_step_does_not_depend_on_its_cutting(name: str, options: dict[str, Any]) -> None:
    """The losses of two batches add up to that of both as one."""
    from tunesmith.models.planting import plant

    model, method = tiny.model(), own_method(name, options)
    trained = method.apply(model).train()
    shake(trained)
    rows = tiny.single_rows(tiny.forest_rows())
    policy = policy_of(model, trained)
    whole = method.loss(policy, plant(rows), NextToken())[0]
    parts = [method.loss(policy, plant(part), NextToken())[0] for part in (rows[:3], rows[3:])]
    assert torch.allclose(sum(parts[1:], parts[0]), whole, rtol=1e-5)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_recomputed_activations_give_the_same_gradients(name: str, options: dict[str, Any], family: str) -> None:
    found = []
    for recompute in (False, True):
        model, method = (
            tiny.model(family, **({"resid_pdrop": 0.0} if family == "gpt2" else {})),
            own_method(name, options),
        )
        torch.manual_seed(3)
        trained = method.apply(model).train()
        shake(trained)
        for part in trained.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        method.loss(policy_of(model, trained), tiny.forest(), NextToken())[0].backward()
        found.append({key: weight.grad for key, weight in trainable(trained).items() if weight.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert found[0]
    for key, grad in found[0].items():
        assert torch.allclose(grad, found[1][key], rtol=1e-4, atol=1e-6), key


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_outline_has_the_same_shapes(name: str, options: dict[str, Any]) -> None:
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(tiny.config("llama"))
    method = own_method(name, options)
    outlined = trainable(method.outline().apply(skeleton))
    real = trainable(method.apply(tiny.model()))
    assert {key: value.shape for key, value in outlined.items()} == {key: value.shape for key, value in real.items()}
    assert {value.device.type for value in outlined.values()} == {"meta"}


READER = """\
import json, sys
import torch
from pathlib import Path
from safetensors.torch import save_file
from tunesmith.core.run import ModelSpec
from tunesmith.generate.opened import open_model

out = {}
for name, folder in json.loads(Path(sys.argv[1]).read_text()).items():
    opened = open_model(ModelSpec(path=folder, dtype="float32", device="cpu", attention="padded"))
    assert not [key for key, weight in opened.trained.named_parameters() if weight.requires_grad]
    with torch.no_grad():
        out[name] = opened.trained(input_ids=torch.arange(3, 43).reshape(2, 20), use_cache=False).logits.contiguous()
    for key, weight in opened.trained.named_parameters():
        if ".medusa." in key:
            out[f"{name} {key}"] = weight.detach().contiguous()
save_file(out, sys.argv[2])
"""


def test_what_is_saved_is_opened_in_a_fresh_process(tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    jobs: dict[str, str] = {}
    expected: dict[str, Tensor] = {}
    for name, options in [case.values for case in CASES]:
        model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="sdpa")
        folder = tmp_path / f"{name}-{len(jobs)}"
        trained = saved(model, str(name), options, folder)  # type: ignore[arg-type]
        assert {file.name for file in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
        jobs[folder.name] = str(folder)
        model.set_attn_implementation("sdpa")
        expected[folder.name] = logits(trained)
        heads = {key: weight.detach() for key, weight in trained.named_parameters() if ".medusa." in key}
        expected |= {f"{folder.name} {key}": weight for key, weight in heads.items()}
    (tmp_path / "jobs").write_text(json.dumps(jobs), "utf-8")
    command = [sys.executable, "-c", READER, str(tmp_path / "jobs"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = load_file(tmp_path / "out")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert size(found[name] - values) <= 1e-5 * size(values), name


@pytest.mark.parametrize("name", [*OWN, *PLAIN])
def test_resumed_is_uninterrupted_bit_for_bit(name: str, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if event.kind == "step" and event.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    base = tiny.folder(tmp_path / "base")
    options = {
        "method": {name: PLAIN.get(name, {})},
        "optimizer": {"adamw": {"lr": 3e-3}},
        "train": {"tokens_per_batch": 120, "validate_every": 2, "epochs": 2},
        "validation": {"fraction": 0.2},
    }
    whole = train(tiny.run_of(base, tmp_path / "whole", **options))
    first = train(tiny.run_of(base, tmp_path / "parts", **options), hear=stop)
    assert (first.ended, first.state.step) == ("preempted", 3)
    second = resume(first.folder.path)
    assert tiny.figures(second) == tiny.figures(whole)
    assert tiny.figures(second, "validate") == tiny.figures(whole, "validate")
    ours, theirs = tiny.tensors(second.folder.model), tiny.tensors(whole.folder.model)
    assert ours.keys() == theirs.keys()
    assert ours
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert tiny.moved(whole, base) > 1e-3


@pytest.mark.parametrize("name", OWN)
def test_a_run_goes_on_with_a_run(name: str, tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    options: dict[str, Any] = {"method": name, "optimizer": {"adamw": {"lr": 3e-3}}, "train": {"epochs": 4}}
    first = tiny.trained(base, tmp_path, output="first", **options)
    second = tiny.trained(first.folder.path, tmp_path, output="second", **options)
    assert tiny.losses(second)[0] < tiny.losses(first)[0]
    found = open_model(ModelSpec(path=str(second.folder.path), dtype="float32", device="cpu"))
    assert found.adapted
    assert not any(" fold " in line for line in next_commands(second.folder))
    with pytest.raises(Problem, match=f"method {name}: .*Use the base and the adapter together"):
        fold(str(second.folder.path))


@pytest.mark.parametrize("name", SCORING)
def test_a_score_head_learns_is_saved_and_switched_off(name: str, tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    result = tiny.trained(base, tmp_path, "reward", method=name, optimizer={"adamw": {"lr": 1e-2}}, train={"epochs": 6})
    assert json.loads((result.folder.model / "adapter_config.json").read_text("utf-8"))["task_type"] == "SEQ_CLS"
    assert any(key.startswith("score.") for key in tiny.tensors(result.folder.model))
    assert tiny.losses(result)[-1] < tiny.losses(result)[0]
    opened = open_model(ModelSpec(path=str(result.folder.path), dtype="float32", device="cpu"), HeadSpec("score"))
    head: Any = opened.model.score
    assert torch.equal(tiny.tensors(result.folder.model)["score.learned.weight"], head.learned.weight)
    assert tiny.figures(result)[-1]["accuracy"] == 1.0
    scored = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    scored.config.pad_token_id = 0
    before = logits(scored)
    method = own_method(name, {"learns": "routers"} if name == "mixture_of_depths" else {})
    trained = method.apply(scored)
    shake(trained)
    assert size(logits(trained) - before) > 1e-3
    with method.off(trained):
        assert torch.equal(logits(trained), before)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_opened_can_be_compared_with_its_base(
    name: str, options: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    """Also where weights of the base itself learned; on and off, and on again."""
    saved(tiny.model(), name, options, tmp_path)
    plain = tiny.model().to(dtype)  # type: ignore[call-arg]
    before = logits(plain)
    worn = put_on(plain, tmp_path)
    tuned = logits(worn)
    with worn.disable_adapter():  # type: ignore[operator]
        assert torch.equal(logits(worn), before)
    assert torch.equal(logits(worn), tuned)
    assert torch.equal(tuned, before) is (name == "medusa" and options.get("base") != "learns")


@pytest.mark.parametrize("name", OWN)
def test_used_in_the_number_type_of_the_base(name: str, tmp_path: Path) -> None:
    model = tiny.model().to(torch.bfloat16)  # type: ignore[call-arg]
    method = own_method(name, {})
    trained = method.apply(model)
    assert {weight.dtype for weight in trainable(trained).values()} == {torch.float32}
    method.save(trained, tmp_path)
    worn = put_on(tiny.model().to(torch.bfloat16), tmp_path)  # type: ignore[call-arg]
    assert {weight.dtype for weight in worn.parameters()} == {torch.bfloat16}
    assert logits(worn).isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "stands"),
    [
        ("bottleneck", {}, True),
        ("mixture_of_depths", {"learns": "routers"}, True),
        ("mixture_of_depths", {}, False),
        ("medusa", {}, True),
        ("medusa", {"base": "learns"}, False),
        ("expand", {}, False),
        ("bitfit", {}, False),
    ],
)
def test_which_stand_on_a_quantised_base(name: str, options: dict[str, Any], stands: bool) -> None:
    held = Held("nf4", "bitsandbytes", own=False, why="")
    assert bool(method_of(name, **options).unfit(held)) is not stands


class TestAdapterFiles:
    def test_the_configuration_says_base_task_and_method(self, tmp_path: Path) -> None:
        model = tiny.model()
        model.name_or_path = "ORG/NAME"
        method = own_method("bottleneck", {"size": 8})
        method.save(method.apply(model), tmp_path)
        config = json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))
        assert config["base_model_name_or_path"] == "ORG/NAME"
        assert config["task_type"] == "CAUSAL_LM"
        assert config["tunesmith_method"]["bottleneck"]["size"] == 8
        assert saved_method(tmp_path) == method

    def test_other_options_are_refused_but_those_that_change_no_weights(self, tmp_path: Path) -> None:
        method = own_method("bottleneck", {"size": 8})
        method.save(method.apply(tiny.model()), tmp_path)
        own_method("bottleneck", {"size": 8, "dropout": 0.2}).adopt(tiny.model(), tmp_path)
        with pytest.raises(Problem, match=r"method.bottleneck.size: is 16, .* has 8. Set size: 8"):
            own_method("bottleneck", {"size": 16}).adopt(tiny.model(), tmp_path)
        with pytest.raises(Problem, match="of the method bottleneck, not of medusa"):
            own_method("medusa", {}).adopt(tiny.model(), tmp_path)

    def test_an_adapter_of_peft_is_none_of_ours(self, tmp_path: Path) -> None:
        lora = method_of("lora", rank=4)
        lora.save(lora.apply(tiny.model()), tmp_path)
        assert saved_method(tmp_path) is None
        with pytest.raises(Problem, match="is an adapter of PEFT"):
            own_method("bottleneck", {}).adopt(tiny.model(), tmp_path)

    @pytest.mark.parametrize("value", [{"lora": {}}, {"nothing": {}}, {"bottleneck": {"size": -1}}, 3, []])
    def test_a_configuration_that_means_nothing_is_refused(self, value: object, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").write_text(json.dumps({"tunesmith_method": value}), "utf-8")
        with pytest.raises(Problem, match="tunesmith_method"):
            saved_method(tmp_path)

    def test_weights_of_another_base_are_refused(self, tmp_path: Path) -> None:
        method = own_method("bottleneck", {})
        method.save(method.apply(tiny.model()), tmp_path)
        with pytest.raises(Problem, match="does not fit its base"):
            put_on(tiny.model(num_hidden_layers=2), tmp_path)
        with pytest.raises(Problem, match="does not fit its base"):
            put_on(tiny.model(hidden_size=64), tmp_path)
        file = tmp_path / "adapter_model.safetensors"
        held = load_file(file)
        save_file(dict(list(held.items())[1:]), file)
        with pytest.raises(Problem, match="1 weights are missing"):
            put_on(tiny.model(), tmp_path)
        file.write_bytes(file.read_bytes()[:-5])
        with pytest.raises(Problem, match="cannot be read"):
            put_on(tiny.model(), tmp_path)
