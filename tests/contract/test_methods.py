"""What every method keeps, by the listing of its folder: each is told of once, in a short story on a tiny model.

    apply ─▶ begin ─▶ a few steps ─▶ off ─▶ save ─▶ load ─▶ fold

Every method is told of on a Llama with all of its variants, and with its defaults on a Qwen3, a GPT-2 and a T5. What a
method cannot do it refuses, with what to do instead; what it promises stands in its properties.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from tunesmith.core.events import Event
from tunesmith.core.plugins import build, names
from tunesmith.core.problem import Problem
from tunesmith.core.rows import TokenRow
from tunesmith.generate.opened import put_on
from tunesmith.methods import Method, trainable
from tunesmith.models.forest import Batch
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy
from tunesmith.models.probe import choose_attention
from tunesmith.objectives import next_token_loss
from tunesmith.train.survey import learned_parts
from tunesmith.train.verb import resume, train

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "freeze": [{}, {"first": 1, "last": 0}, {"last": 0, "names": ["*.1.*"]}, {"last": 1, "head": "learns"}],
    "lora": [
        {},
        {"start": "gaussian"},
        {"start": "orthogonal", "rank": 4},
        {"start": "pissa", "rank": 4},
        {"start": "olora", "rank": 4},
        {"start": "eva", "rank": 4},
        {"start": "eva", "rank": 4, "ranks": "by_variance"},
        {"scaling": "rank_stabilized"},
        {"form": "dora"},
        {"dropout": 0.3},
    ],
    "lora_fa": [{}, {"start": "orthogonal", "dropout": 0.2}],
    "adalora": [{"rank": 2, "start_rank": 4, "settle": 0.3}],
    "vera": [{}, {"rank": 16, "dropout": 0.1}],
    "loha": [{}, {"rank": 4, "dropout": 0.1, "layer_dropout": 0.1}],
    "lokr": [{}, {"small_factor": "low_rank", "factor": 4, "rank": 2}],
    "ia3": [{}, {"targets": ["v_proj", "up_proj"], "feedforward": ["up_proj"]}],
    "oft": [{"block_size": 16}, {"block_size": 8, "inverse": "exact", "blocks": "shared"}],
    "prompt": [{"tokens": 4}, {"tokens": 4, "start": "random"}],
    "p_tuning": [{"tokens": 4, "hidden": 16}, {"tokens": 4, "hidden": 16, "encoder": "lstm"}],
    "prefix": [{"tokens": 4, "hidden": 16}, {"tokens": 4, "projection": "none"}],
    "p_tuning_v2": [{"tokens": 4}, {"tokens": 4, "start": "zero"}],
    "peft": [{"type": "hra"}],
    "bitfit": [{"parts": "norms"}],
}
"""Options beside the defaults that are worth the same tests; a method that is not named here has its defaults tried."""
RATES = {"vera": 3e-2, "ia3": 3e-2, "adalora": 3e-2}
ONE_ANSWER = ("medusa",)
"""Methods that learn from rows with one answer only."""
BESIDE = ("medusa",)
"""Methods that put something beside the model and leave what it computes as it is."""
SIDES = ("t5",)
STEPS = 6
TOLERANCE = {"llama": 1e-5, "gpt2": 1e-5, "qwen3": 1e-5, "t5": 1e-4}
"""Largest difference of logits, relative to the largest, that rounding explains; T5 does not scale its attention."""
TOKENS = torch.arange(3, 43).reshape(2, 20)


def _cases(families: tuple[str, ...], *, all_variants: bool) -> list[Any]:
    return [
        pytest.param(name, json.dumps(options, sort_keys=True), family, id=f"{name}-{json.dumps(options)}-{family}")
        for name in names("method")
        for options in VARIANTS.get(name, [{}])[: None if all_variants else 1]
        for family in families
    ]


CASES = [*_cases(("llama",), all_variants=True), *_cases(("qwen3", "gpt2", "t5"), all_variants=False)]
NAMES = [pytest.param(name, VARIANTS.get(name, [{}])[0], id=name) for name in names("method")]


class NextToken:
    """The formula of next tokens, over whatever a batch learns."""

    def count(self, batch: Batch) -> float:
        return float(batch.targets.weight.sum())

    def loss(self, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return next_token_loss(policy, batch), {}


@dataclass
class Story:
    """What happened to a model under a method. flags: names of what learns, when it began and after `off`."""

    model: PreTrainedModel
    trained: nn.Module
    method: Method
    policy: Policy
    before: Tensor
    started: Tensor
    first: dict[str, Tensor]
    flags: list[set[str]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    off: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)

    @property
    def after(self) -> Tensor:
        return logits(self.trained)


def method_of(name: str, options: dict[str, Any]) -> Method:
    found = build("method", {name: options})
    assert isinstance(found, Method)
    return found


def logits(model: nn.Module) -> Tensor:
    training = model.training
    model.eval()
    base: Any = model if isinstance(model, PreTrainedModel) else model.get_base_model()  # type: ignore[operator]
    sides = base.config.is_encoder_decoder
    more = {"decoder_input_ids": TOKENS[:, :7]} if sides else {}
    with torch.no_grad():
        out = model(input_ids=TOKENS, use_cache=False, **more).logits
    model.train(training)
    return out[:, -TOKENS.shape[1] :]  # without those of virtual tokens


def size(values: Tensor) -> float:
    return float(values.abs().max())


def rows(name: str, family: str, seed: int = 1) -> list[TokenRow]:
    if family in SIDES:
        return tiny.pair_rows(seed=seed)
    found = tiny.forest_rows(seed=seed)
    return [row for row in found if not row.branches] if name in ONE_ANSWER else found


def batches(name: str, family: str) -> list[Batch]:
    return [plant(rows(name, family, seed)) for seed in (1, 2)]


def begun(model: PreTrainedModel, method: Method, data: list[Batch]) -> Policy:
    """A model under a method that has begun, as a policy."""
    forest = choose_attention(model, "auto").forest
    torch.manual_seed(0)
    trained = method.apply(model)
    policy = Policy(model, forest=forest, trained=trained, off=lambda: method.off(trained))
    method.begin(policy, iter(data * 8), STEPS)
    return policy


def learn(policy: Policy, method: Method, data: list[Batch], steps: int, lr: float) -> None:
    """So many steps of AdamW over some batches, each a micro-batch."""
    trained, formula = policy.trained, NextToken()
    optimizer = torch.optim.AdamW(method.groups(trained, lr), weight_decay=0.0)
    count = sum(formula.count(batch) for batch in data)
    trained.train()
    torch.manual_seed(0)
    for step in range(steps):
        optimizer.zero_grad()
        for batch in data:
            (method.loss(policy, batch, formula)[0] / count).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        method.after_step(trained, step)


def measured(policy: Policy, data: list[Batch], method: Method | None = None) -> float:
    """The loss in evaluation mode: that of next tokens, or of a method that learns something else as well."""
    with torch.no_grad(), policy.still():
        if method is None:
            return float(sum(next_token_loss(policy, batch) for batch in data))
        return float(sum(method.loss(policy, batch, NextToken())[0] for batch in data))


def gradient(policy: Policy, method: Method, data: list[Batch]) -> Tensor:
    """The gradient of a step in evaluation mode, where no draw differs, over micro-batches."""
    formula = NextToken()
    for weight in trainable(policy.trained).values():
        weight.grad = None
    count = sum(formula.count(batch) for batch in data)
    with policy.still():
        for batch in data:
            (method.loss(policy, batch, formula)[0] / count).backward()  # type: ignore[no-untyped-call]
    grads = [weight.grad for weight in trainable(policy.trained).values()]
    return torch.cat([grad.flatten() for grad in grads if grad is not None])


@functools.cache
def story(name: str, options: str, family: str) -> Story | Problem:
    """All that the tests below look at; the Problem if the method is not for this architecture."""
    model, method = tiny.model(family), method_of(name, json.loads(options))
    before = logits(model)
    try:
        policy = begun(model, method, batches(name, family))
    except Problem as problem:
        return problem
    trained, data = policy.trained, batches(name, family)
    first = {name: value.detach().clone() for name, value in trained.state_dict(keep_vars=True).items()}
    told = Story(model, trained, method, policy, before, logits(trained), first, flags=[set(trainable(trained))])
    told.gradients = [gradient(policy, method, cut) for cut in (data[:1], _one_by_one(name, family))]
    told.losses.append(measured(policy, data, method))
    learn(policy, method, data, STEPS, RATES.get(name, 1e-2))
    told.losses.append(measured(policy, data, method))
    if method.reversible:
        with method.off(trained):
            told.off.append(logits(trained))
        told.flags.append(set(trainable(trained)))
    return told


def _one_by_one(name: str, family: str) -> list[Batch]:
    return [plant([row]) for row in rows(name, family)]


@pytest.fixture
def told(name: str, options: str, family: str) -> Iterator[Story]:
    """The story of a method, where there is one to be told; a Llama refuses none."""
    found = story(name, options, family)
    if isinstance(found, Problem):
        assert found.hint, found
        assert family != "llama", found
        with torch.device("meta"), pytest.raises(Problem):
            kind = AutoModelForSeq2SeqLM if family in SIDES else AutoModelForCausalLM
            method_of(name, json.loads(options)).outline().apply(kind.from_config(tiny.config(family)))
        pytest.skip(f"refused before the model is loaded: {found}")
    yield found


@pytest.mark.parametrize(("name", "options", "family"), CASES)
class TestMethod:
    def test_starts_where_the_model_is(self, told: Story, family: str) -> None:
        if not told.method.starts_at_identity:
            pytest.skip("it does not promise to, and a run says so")
        assert size(told.started - told.before) <= TOLERANCE[family] * size(told.before)

    def test_moves_what_it_declares_and_nothing_else(self, told: Story) -> None:
        after = told.trained.state_dict(keep_vars=True)
        declared = told.flags[0]
        kept = {name for name in after if name in told.method.state(told.trained)}
        moved = {name for name, value in after.items() if not torch.equal(value, told.first[name])}
        tied = {name for name, value in after.items() if any(value is after[other] for other in declared)}
        assert after.keys() == told.first.keys()
        assert declared
        assert moved <= declared | tied | kept
        assert len(moved & declared) >= 0.4 * len(declared)

    def test_learns(self, told: Story) -> None:
        assert told.losses[1] < 0.998 * told.losses[0]

    def test_a_step_does_not_depend_on_its_cutting(self, told: Story) -> None:
        whole, cut = told.gradients
        assert float((whole - cut).norm()) <= 1e-4 * float(whole.norm())

    def test_off_is_the_untouched_model_bit_for_bit(self, told: Story) -> None:
        """Inside a context, after which the same weights learn as before it; or it is refused with what to do."""
        if not told.method.reversible:
            with pytest.raises(Problem, match="precomputed"):
                told.method.off(told.trained)
            return
        assert torch.equal(told.off[0], told.before)
        assert torch.equal(told.after, told.before) is (told.method.name() in BESIDE)
        assert told.flags[1] == told.flags[0]

    def test_a_forest_is_padded_rows(self, told: Story, family: str) -> None:
        if not told.policy.forest:
            pytest.skip("this architecture takes no forest")
        batch = plant(rows(told.method.name(), family, seed=3))
        with torch.no_grad(), told.policy.still():
            ours = told.policy.logprobs(batch)
            told.policy.forest = False
            told.model.set_attn_implementation("sdpa")
            theirs = told.policy.logprobs(batch)
            told.policy.forest = choose_attention(told.model, "auto").forest
        assert told.policy.forest
        assert size(ours - theirs) <= 2e-4 * size(theirs)

    def test_what_is_saved_is_what_was_trained(self, told: Story, family: str, tmp_path: Path) -> None:
        told.method.save(told.trained, tmp_path / "saved")
        assert {file.suffix for file in (tmp_path / "saved").iterdir()} <= {".safetensors", ".json"}
        if (tmp_path / "saved" / "adapter_config.json").exists():
            found: nn.Module = put_on(tiny.model(family), tmp_path / "saved")
        else:
            kind = AutoModelForSeq2SeqLM if family in SIDES else AutoModelForCausalLM
            found = kind.from_pretrained(tmp_path / "saved", attn_implementation="sdpa")
        assert size(logits(found) - told.after) <= 2 * TOLERANCE[family] * size(told.after)

    def test_its_parts_add_up_to_what_learns(self, told: Story) -> None:
        parts = learned_parts(told.trained)
        assert sum(parts.values()) == sum(weight.numel() for weight in trainable(told.trained).values())
        assert not [part for part in parts if any(word.isdigit() for word in part.split("."))]

    def test_groups_hold_each_weight_that_learns_once(self, told: Story) -> None:
        groups = told.method.groups(told.trained, 1e-3)
        grouped = [id(weight) for group in groups for weight in group["params"]]
        assert len(set(grouped)) == len(grouped)
        assert set(grouped) == {id(weight) for weight in trainable(told.trained).values()}
        assert all(group["lr"] > 0 for group in groups)

    def test_its_outline_has_the_same_shapes(self, told: Story, family: str, options: str, name: str) -> None:
        """On a model without memory, where what does not fit is refused before anything is loaded."""
        method = method_of(name, json.loads(options))
        kind = AutoModelForSeq2SeqLM if family in SIDES else AutoModelForCausalLM
        with torch.device("meta"):
            skeleton = kind.from_config(tiny.config(family))
        outlined = trainable(method.outline().apply(skeleton))
        real = trainable(method.apply(tiny.model(family)))
        assert {name: weight.shape for name, weight in outlined.items()} == {
            name: weight.shape for name, weight in real.items()
        }
        assert {weight.device.type for weight in outlined.values()} == {"meta"}

    def test_zz_folds_into_plain_weights_or_says_why_not(self, told: Story, family: str) -> None:
        """Last, since it takes the method off the model."""
        expected = told.after
        try:
            folded = told.method.fold(told.trained)
        except Problem as problem:
            assert problem.hint
            assert torch.equal(told.after, expected)
            return
        assert isinstance(folded, PreTrainedModel)
        assert size(logits(folded) - expected) <= 2 * TOLERANCE[family] * size(expected)
        plain = set(dict(tiny.model(family).named_parameters()))
        assert set(dict(folded.named_parameters())) >= plain


@pytest.mark.parametrize(("name", "options"), NAMES)
class TestEach:
    def test_holds_what_learns_in_float32_over_bfloat16(self, name: str, options: dict[str, Any]) -> None:
        """And computes with it under autocast, as the loop does."""
        model, method = tiny.model().to(torch.bfloat16), method_of(name, options)  # type: ignore[call-arg]
        trained = method.apply(model)
        assert {weight.dtype for weight in trainable(trained).values()} == {torch.float32}
        policy = Policy(model, forest=False, trained=trained, autocast=torch.bfloat16)
        loss, _ = method.loss(policy, batches(name, "llama")[0], NextToken())
        loss.backward()  # type: ignore[no-untyped-call]
        grads = [weight.grad for weight in trainable(trained).values() if weight.grad is not None]
        assert grads
        assert all(torch.isfinite(grad).all() for grad in grads)

    def test_a_score_head_learns_or_it_is_refused(self, name: str, options: dict[str, Any]) -> None:
        model, method = tiny.model(head="score"), method_of(name, options)
        try:
            trained = method.apply(model)
        except Problem as problem:
            assert problem.hint
            return
        policy = Policy(model, forest=False, trained=trained)
        policy.scores(tiny.pairs()).sum().backward()  # type: ignore[no-untyped-call]
        heads = [weight for part, weight in trainable(trained).items() if "score" in part]
        assert any(weight.grad is not None and float(weight.grad.abs().max()) > 0 for weight in heads)


def _keeps_more(method: Method) -> bool:
    kind = type(method)
    return kind.state is not Method.state or kind.begin is not Method.begin


STATEFUL = [
    pytest.param(name, options, id=f"{name}-{json.dumps(options)}")
    for name in names("method")
    for options in VARIANTS.get(name, [{}])
    if _keeps_more(method_of(name, options)) and (name not in ("lora", "lora_plus") or "ranks" in options)
]
"""Methods that keep more than weights, or begin from data, of which resuming could lose something."""


@pytest.mark.parametrize(("name", "options"), STATEFUL)
def test_a_run_that_is_broken_off_goes_on_bit_for_bit(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    settings: dict[str, Any] = {"method": {name: options}, "optimizer": {"adamw": {"lr": 1e-2}}}
    pace = {"rows_per_step": 4, "epochs": 3, "checkpoint_every": 2}
    whole = tiny.trained(base, tmp_path, **settings, train=pace, output="whole")

    def stop(event: Event) -> None:
        if event.kind == "step" and event.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    first = train(tiny.run_of(base, tmp_path, **settings, train=pace, output="broken"), hear=stop)
    assert first.ended == "preempted"
    second = resume(first.folder.path)
    assert tiny.figures(second) == tiny.figures(whole)
    ours, theirs = tiny.tensors(second.folder.model), tiny.tensors(whole.folder.model)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


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
        logits = model.eval()(input_ids=torch.arange(3, 43).reshape(2, 20), use_cache=False).logits
        out[name] = logits[:, -20:].contiguous()
save_file(out, sys.argv[2])
assert not [name for name in sys.modules if name.startswith("tunesmith")]
"""


def test_what_is_saved_loads_in_a_fresh_process_without_tunesmith(tmp_path: Path) -> None:
    """Every method whose format others have: transformers and PEFT alone give the same logits."""
    base = tiny.folder(tmp_path / "base")
    jobs, expected = [], {}
    for case in _cases(("llama",), all_variants=True):
        name, options, family = (str(value) for value in case.values)
        if name != "lora" and json.loads(options) != VARIANTS.get(name, [{}])[0]:
            continue
        model, method = AutoModelForCausalLM.from_pretrained(base), method_of(name, json.loads(options))
        policy, saved = begun(model, method, batches(name, family)), tmp_path / f"saved-{len(jobs)}"
        learn(policy, method, batches(name, family)[:1], 2, 1e-2)
        method.save(policy.trained, saved)
        config = saved / "adapter_config.json"
        if config.exists() and "tunesmith_method" in json.loads(config.read_text("utf-8")):
            continue
        jobs.append((str(case.id), str(base), str(saved)))
        expected[str(case.id)] = logits(policy.trained)
    assert len(jobs) > 20
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
        policy = Policy(model, forest=False, trained=trained)
        first = measured(policy, batches("lora", "llama"), method)
        learn(policy, method, batches("lora", "llama"), 8, 1e-2)
        assert measured(policy, batches("lora", "llama"), method) < first
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
