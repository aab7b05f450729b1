"""The vLLM engine against a stand-in of the library, which computes with transformers what it is asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from made_benches import CONTEXT, tiny_codec, tiny_folder, tiny_model
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM

from tunesmith.core.plugins import build
from tunesmith.core.problem import Problem
from tunesmith.core.records import Chat, Message, Text
from tunesmith.core.run import ModelSpec
from tunesmith.generate.draws import seed_of
from tunesmith.generate.engines import Ask
from tunesmith.generate.engines.local import Local
from tunesmith.generate.engines.vllm import Vllm
from tunesmith.generate.sampling import Sampling
from tunesmith.models.policy import Policy
from tunesmith.objectives._online import Online

ASKS: list[Ask] = [Chat((Message("user", "hello"),)), Text("in the thing"), Text("b" * 250)]
SHORT = Sampling(max_tokens=8)


class StandIn:
    """`vllm.LLM` as far as it is used: greedy, through transformers, with the adapter that a request names."""

    made: list[StandIn]

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.calls: list[dict[str, Any]] = []
        self.done: list[str] = []
        self.model = LlamaForCausalLM.from_pretrained(options["model"])
        StandIn.made.append(self)

    def generate(
        self, prompts: list[Any], params: list[Any], *, use_tqdm: bool, lora_request: Any
    ) -> list[SimpleNamespace]:
        self.calls.append({"prompts": prompts, "params": params, "lora": lora_request})
        model: Any = self.model
        if lora_request is not None:
            model = PeftModel.from_pretrained(model, lora_request.path)
        found = [
            SimpleNamespace(outputs=[SimpleNamespace(token_ids=self._drawn(model, prompt, asked))] * asked.n)
            for prompt, asked in zip(prompts, params, strict=True)
        ]
        if lora_request is not None:
            self.model = model.unload()
        return found

    def _drawn(self, model: Any, prompt: dict[str, list[int]], asked: SimpleNamespace) -> tuple[int, ...]:
        ids = torch.tensor([prompt["prompt_token_ids"]])
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=asked.max_tokens,
            do_sample=False,
            eos_token_id=asked.stop_token_ids,
            pad_token_id=0,
        )
        return tuple(out[0, ids.shape[1] :].tolist())

    def collective_rpc(self, name: str, kwargs: dict[str, str]) -> None:
        self.done.append(name)
        self.model = LlamaForCausalLM.from_pretrained(kwargs["weights_path"])

    def reset_prefix_cache(self) -> None:
        self.done.append("reset_prefix_cache")


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    StandIn.made = []
    module, lora, request = (ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    module.LLM, module.SamplingParams = StandIn, SimpleNamespace  # type: ignore[attr-defined]
    request.LoRARequest = lambda name, number, path: SimpleNamespace(  # type: ignore[attr-defined]
        name=name, number=number, path=path
    )
    for each in (module, lora, request):
        monkeypatch.setitem(sys.modules, each.__name__, each)
    return StandIn


def spec(folder: Path, **options: Any) -> ModelSpec:
    return ModelSpec(path=str(folder), **options)


def local(folder: Path) -> list[Any]:
    return list(Local().open(ModelSpec(path=str(folder), device="cpu", dtype="float32")).answer(ASKS, SHORT))


def adapter_over(base: Path, folder: Path, **options: Any) -> Path:
    torch.manual_seed(3)
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, **options}
    adapted = get_peft_model(tiny_model(), LoraConfig(task_type="CAUSAL_LM", **settings))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("base"))


def test_answers_are_those_of_the_local_engine(library: type[StandIn], base: Path) -> None:
    answers = Vllm(memory=0.3, gpus=2).open(spec(base, dtype="float32"))
    assert list(answers.answer(ASKS, SHORT)) == local(base)
    assert list(answers.stream(ASKS[0], SHORT)) == [local(base)[0].text]
    options = library.made[0].options
    assert options["model"] == str(base)
    assert (options["tensor_parallel_size"], options["gpu_memory_utilization"]) == (2, 0.3)
    assert (options["dtype"], options["trust_remote_code"]) == ("float32", False)
    assert "enable_lora" not in options


def test_what_is_asked_of_the_library(library: type[StandIn], base: Path) -> None:
    sampling = Sampling(max_tokens=9, temperature=0.7, top_p=0.9, top_k=5, repetition_penalty=1.1, stop=("x",), seed=4)
    groups = list(Vllm().open(spec(base)).answers(ASKS, sampling, 3))
    assert [len(group) for group in groups] == [3, 3, 3]
    params = library.made[0].calls[0]["params"]
    assert [one.n for one in params] == [3, 3, 3]
    assert [one.seed for one in params] == [seed_of(4, number) for number in (0, 3, 6)]
    assert [one.max_tokens for one in params] == [9, 9, CONTEXT - 250]
    assert vars(params[0]) | {"seed": 0} == {
        "n": 3,
        "max_tokens": 9,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "repetition_penalty": 1.1,
        "stop": ["x"],
        "stop_token_ids": sorted(tiny_codec().end_tokens),
        "seed": 0,
    }


def test_without_a_temperature_one_answer_stands_for_all(library: type[StandIn], base: Path) -> None:
    groups = list(Vllm().open(spec(base)).answers(ASKS, SHORT, 4))
    assert groups == [(one,) * 4 for one in local(base)]
    assert {one.n for one in library.made[0].calls[0]["params"]} == {1}
    assert {one.top_k for one in library.made[0].calls[0]["params"]} == {-1}
    assert list(Vllm().open(spec(base)).answers([], SHORT, 4)) == []


def test_a_saved_adapter_is_worn(library: type[StandIn], base: Path, tmp_path: Path) -> None:
    folder = adapter_over(base, tmp_path / "adapter")
    found = list(Vllm().open(spec(folder)).answer(ASKS, SHORT))
    assert found == local(folder)
    assert found != local(base)
    options = library.made[0].options
    assert (options["model"], options["enable_lora"], options["max_lora_rank"]) == (str(base), True, 8)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_dora": True}, "it is DoRA"),
        ({"bias": "all"}, "it has trained biases"),
        ({"modules_to_save": ["lm_head"]}, "it replaces whole layers"),
        ({"rank_pattern": {"q_proj": 2}}, "its rank or alpha differs by layer"),
        ({"r": 600}, "its rank is 600, and vLLM goes up to 512"),
    ],
)
def test_adapters_that_vllm_would_compute_otherwise_are_refused(
    library: type[StandIn], base: Path, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    folder = adapter_over(base, tmp_path / "adapter", **options)
    with pytest.raises(Problem, match=reason):
        Vllm().open(spec(folder))
    assert not library.made


def test_an_adapter_that_learns_is_followed(library: type[StandIn], base: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(base)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"]))
    answers = Vllm().bind(adapted, tiny_codec())
    assert list(answers.answer(ASKS, SHORT)) == local(base)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.add_(torch.randn_like(weight))
    now = list(Local().bind(adapted, tiny_codec()).answer(ASKS, SHORT))
    assert list(answers.answer(ASKS, SHORT)) == now
    assert now != local(base)
    worn = [call["lora"] for call in library.made[0].calls]
    assert [one.number for one in worn] == [1, 2]
    assert not any(Path(one.path).exists() for one in worn)


def test_a_whole_model_that_learns_is_followed(library: type[StandIn], base: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(base)
    answers = Vllm().bind(model, tiny_codec())
    with torch.no_grad():
        model.lm_head.weight.copy_(tiny_model(seed=5).lm_head.weight)
    assert list(answers.answer(ASKS, SHORT)) == list(Local().bind(model, tiny_codec()).answer(ASKS, SHORT))
    assert library.made[0].done == ["reload_weights", "reset_prefix_cache"]


@pytest.mark.parametrize(
    ("options", "fault"), [({"device": "cpu"}, r"model\.device"), ({"quantize": "nf4"}, r"model\.quantize")]
)
def test_options_that_cannot_be_honoured_are_refused(
    library: type[StandIn], base: Path, options: dict[str, str], fault: str
) -> None:
    with pytest.raises(Problem, match=fault):
        Vllm().open(spec(base, **options))


def test_without_the_library_it_says_so(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(Problem, match=r"package vllm: is not installed here.* an environment of its own"):
        Vllm().open(spec(base))


def test_what_learns_from_own_answers_may_draw_them_with_it(library: type[StandIn], base: Path) -> None:
    """An engine that holds weights of its own is refused; this one takes those of the model that learns."""
    objective = build("objective", {"grpo": {"engine": "vllm"}})
    assert isinstance(objective, Online)
    model = LlamaForCausalLM.from_pretrained(base)
    answers = objective.answering(Policy(model, forest=False, codec=tiny_codec()))
    with torch.no_grad():
        model.lm_head.weight.copy_(tiny_model(seed=5).lm_head.weight)
    assert list(answers.answer(ASKS, SHORT)) == list(Local().bind(model, tiny_codec()).answer(ASKS, SHORT))
    with pytest.raises(Problem, match="do not learn with the run"):
        build("objective", {"grpo": {"engine": {"remote": {"model": "x"}}}})
