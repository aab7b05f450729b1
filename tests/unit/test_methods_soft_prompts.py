"""Soft prompts: first values, what is refused and when, going on with what was saved, whole runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import PeftModel, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tunesmith.cli.closing import next_commands
from tunesmith.core.events import Event
from tunesmith.core.plugins import build
from tunesmith.core.problem import Problem
from tunesmith.core.run import ModelSpec
from tunesmith.generate.opened import open_model
from tunesmith.merge.fold import fold
from tunesmith.methods import Method
from tunesmith.models.ancestor import Embeddings, KeysAndValues, ancestor_of, saved_length
from tunesmith.models.policy import Policy
from tunesmith.train.plan import plan
from tunesmith.train.verb import resume, train

METHODS: dict[str, dict[str, Any]] = {
    "prompt": {"tokens": 4},
    "p_tuning": {"tokens": 4, "hidden": 16},
    "prefix": {"tokens": 4, "hidden": 16},
    "p_tuning_v2": {"tokens": 4},
}
TEXT = "say what it is"
LR = {"adamw": {"lr": 3e-2}}


def method_of(name: str, **options: Any) -> Method:
    found = build("method", {name: options})
    assert isinstance(found, Method)
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base"))


def loaded(base: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(base).eval()


def text_ids() -> list[int]:
    return tiny.oracle()(TEXT, add_special_tokens=False)["input_ids"]


class TestFirstValues:
    @pytest.mark.parametrize("count", [3, 40])
    def test_a_text_is_cut_or_repeated(self, base: Path, count: int) -> None:
        model = loaded(base)
        found = ancestor_of(method_of("prompt", start="text", text=TEXT, tokens=count).apply(model))
        ids = (text_ids() * count)[:count]
        assert isinstance(found, Embeddings)
        assert torch.equal(found.vectors, model.get_input_embeddings()(torch.tensor(ids)))

    def test_a_text_is_that_of_peft(self, base: Path) -> None:
        """PEFT's own text start, with a tokenizer that adds nothing to a text."""
        ours = ancestor_of(method_of("prompt", start="text", text=TEXT, tokens=12).apply(loaded(base)))
        config = PromptTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=12,
            prompt_tuning_init="TEXT",
            prompt_tuning_init_text=TEXT,
            tokenizer_name_or_path=str(base),
        )
        theirs: Any = get_peft_model(loaded(base), config)
        assert isinstance(ours, Embeddings)
        assert torch.equal(ours.vectors, theirs.prompt_encoder["default"].embedding.weight)

    def test_vectors_of_the_vocabulary_are_rows_of_the_embeddings(self) -> None:
        model = tiny.model()
        found = ancestor_of(method_of("prompt").apply(model))
        rows = dict(model.named_parameters())["model.embed_tokens.weight"]
        assert isinstance(found, Embeddings)
        assert all(rows.eq(vector).all(dim=1).any() for vector in found.vectors)

    @pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
    def test_a_prefix_of_a_text_is_the_base_that_has_read_it(self, family: str, tmp_path: Path) -> None:
        base = tiny.folder(tmp_path / "base", family)
        ids = text_ids()
        method = method_of("prefix", start="text", text=TEXT, tokens=len(ids), projection="none")
        model = loaded(base)
        trained = method.apply(model).eval()
        tokens = torch.arange(5, 14)[None]
        with torch.no_grad():
            found = trained(input_ids=tokens).logits
            expected = model(input_ids=torch.cat([torch.tensor([ids]), tokens], dim=1)).logits[:, len(ids) :]
        assert torch.allclose(found, expected, atol=1e-4)

    def test_zeros_are_zeros(self) -> None:
        found = ancestor_of(method_of("p_tuning_v2", start="zero").apply(tiny.model()))
        assert isinstance(found, KeysAndValues)
        assert all(part.abs().max() == 0 for layer in found.layers for part in layer)

    def test_a_text_needs_a_tokenizer(self) -> None:
        with pytest.raises(Problem, match="came from no folder"):
            method_of("prompt", start="text", text=TEXT).apply(tiny.model())


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("prompt", {"start": "text"}, "there is no text"),
        ("prompt", {"start": "text", "text": "  "}, "there is no text"),
        ("prompt", {"text": "words"}, "takes no text"),
        ("prompt", {"tokens": 0}, "greater than 0"),
        ("p_tuning", {"layers": 3}, "encoder lstm"),
        ("prefix", {"start": "text", "text": "words"}, "projection none"),
        ("prefix", {"start": "text", "projection": "none"}, "go together"),
        ("prefix", {"hidden": 8, "projection": "none"}, "projection mlp"),
    ],
)
def test_options_that_do_not_go_together_are_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(Problem, match=words):
        build("method", {name: options})


@pytest.mark.parametrize("name", METHODS)
class TestMethods:
    def test_more_vectors_than_the_context_are_refused(self, name: str, base: Path, tmp_path: Path) -> None:
        run = tiny.run_of(base, tmp_path, method={name: {"tokens": 256}})
        with pytest.raises(Problem, match="whole context is 256"):
            plan(run)

    def test_vectors_count_against_the_context(self, name: str, base: Path, tmp_path: Path) -> None:
        """Before anything is loaded."""
        options = {**METHODS[name], "tokens": 50}
        run = tiny.run_of(base, tmp_path, method={name: options}, train={"max_tokens": 207})
        with pytest.raises(Problem, match=r"train\.max_tokens.*207.*256.*50.*Use 206 or less"):
            train(run)
        found = plan(tiny.run_of(base, tmp_path, method={name: options}, train={"max_tokens": 206}))
        assert found.memory_bytes > 0

    def test_folding_is_refused_with_what_to_do(self, name: str, base: Path, tmp_path: Path) -> None:
        method = method_of(name, **METHODS[name])
        model = loaded(base)
        trained = method.apply(model)
        with pytest.raises(Problem, match=r"cannot be folded.*base and adapter together"):
            method.fold(trained)
        method.save(trained, tmp_path / "saved")
        with pytest.raises(Problem, match=r"cannot be folded.*base and adapter together"):
            fold(str(tmp_path / "saved"))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["saved"]

    def test_a_run_resumes_bit_for_bit(self, name: str, base: Path, tmp_path: Path) -> None:
        options = {"method": {name: METHODS[name]}, "optimizer": LR}
        pace = {"checkpoint_every": 2, "neftune": 5}
        whole = train(tiny.run_of(base, tmp_path, "sft", **options, output="whole", train=pace))

        def stop(event: Event) -> None:
            if event.kind == "step" and event.step == 3:
                raise KeyboardInterrupt

        run = tiny.run_of(base, tmp_path, "sft", **options, output="cut", train=pace)
        with pytest.raises(KeyboardInterrupt):
            train(run, hear=stop)
        resume(tmp_path / "cut")
        ours, theirs = tiny.tensors(tmp_path / "cut/model"), tiny.tensors(whole.folder.model)
        assert ours.keys() == theirs.keys() == {"prompt_embeddings"}
        assert torch.equal(ours["prompt_embeddings"], theirs["prompt_embeddings"])
        assert saved_length(whole.folder.model) == 4

    def test_a_run_is_used_from_its_folder(self, name: str, base: Path, tmp_path: Path) -> None:
        made = tiny.trained(base, tmp_path, method={name: METHODS[name]}, optimizer=LR, train={"epochs": 6})
        assert tiny.losses(made)[-1] < tiny.losses(made)[0]
        assert not any(" fold " in line for line in next_commands(made.folder))
        opened = open_model(ModelSpec(path=str(made.folder.path), dtype="float32", device="cpu"))
        theirs = PeftModel.from_pretrained(loaded(base), str(made.folder.model))
        for ours, expected in zip(tensors_of(opened.trained), tensors_of(theirs), strict=True):
            assert torch.equal(ours, expected)

    def test_going_on_starts_where_the_first_run_ended(self, name: str, base: Path, tmp_path: Path) -> None:
        first = tiny.trained(
            base, tmp_path, method={name: METHODS[name]}, optimizer=LR, train={"epochs": 8}, output="one"
        )
        following = {
            "prompt": {"prompt": {"tokens": 4}},
            "p_tuning": {"prompt": {"tokens": 4}},
            "prefix": {"prefix": {"tokens": 4, "projection": "none"}},
            "p_tuning_v2": {"p_tuning_v2": {"tokens": 4}},
        }[name]
        second = tiny.trained(
            first.folder.path, tmp_path, method=following, optimizer={"adamw": {"lr": 1e-9}}, output="two"
        )
        before, after = (tiny.tensors(run.folder.model)["prompt_embeddings"] for run in (first, second))
        assert (before - after).abs().max() <= 1e-6
        assert tiny.losses(second)[0] < tiny.losses(first)[0]


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_a_live_reference_is_a_precomputed_one(name: str, base: Path, tmp_path: Path) -> None:
    """The first loss of a method that starts at identity would be log 2."""
    figures = []
    for reference in ("live", "precomputed"):
        objective = {"dpo": {"reference": reference}}
        made = tiny.trained(base, tmp_path, objective, method={name: METHODS[name]}, optimizer=LR, output=reference)
        figures.append(tiny.losses(made))
    assert figures[0] == pytest.approx(figures[1], rel=1e-4)
    assert abs(figures[0][0] - math.log(2)) > 1e-3


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_recomputing_gives_the_same_run(name: str, base: Path, tmp_path: Path) -> None:
    runs = [
        tiny.trained(
            base, tmp_path, method={name: METHODS[name]}, output=setting, train={"checkpoint_activations": setting}
        )
        for setting in ("on", "off")
    ]
    assert tiny.losses(runs[0]) == pytest.approx(tiny.losses(runs[1]), rel=1e-6)


def tensors_of(trained: Any) -> list[Tensor]:
    """What a soft prompt puts before rows."""
    found = ancestor_of(trained)
    if isinstance(found, KeysAndValues):
        return [part for layer in found.layers for part in layer]
    assert isinstance(found, Embeddings)
    return [found.vectors]


@pytest.mark.parametrize(
    ("config", "name", "options", "words"),
    [
        (PromptEncoderConfig, "p_tuning", {}, "go on with the method prompt"),
        (PromptEncoderConfig, "prefix", {}, "go on with the method prompt"),
        (PrefixTuningConfig, "prefix", {}, "projection: none"),
        (PrefixTuningConfig, "prompt", {}, "p_tuning_v2"),
        (PromptTuningConfig, "p_tuning_v2", {}, "method prompt"),
        (PromptTuningConfig, "prompt", {"tokens": 5}, "Set tokens: 4"),
        (PromptTuningConfig, "prompt", {"start": "text", "text": "words"}, "has values already"),
    ],
)
def test_an_adapter_that_cannot_be_gone_on_with_is_refused(
    config: Any, name: str, options: dict[str, Any], words: str, base: Path, tmp_path: Path
) -> None:
    get_peft_model(loaded(base), config(task_type="CAUSAL_LM", num_virtual_tokens=4)).save_pretrained(
        tmp_path / "saved"
    )
    with pytest.raises(Problem, match=words):
        method_of(name, **{"tokens": 4, **options}).adopt(loaded(base), tmp_path / "saved")


@pytest.mark.parametrize("name", ["prefix", "p_tuning_v2"])
class TestWhereThereAreNoKeysAndValues:
    @pytest.mark.parametrize("family", ["mamba", "falcon_h1", "qwen3_next"])
    def test_state_spaces_are_refused_before_their_weights_are_read(
        self, name: str, family: str, tmp_path: Path
    ) -> None:
        base = tiny.folder(tmp_path / "base", family)
        (base / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")
        with pytest.raises(Problem, match=r"keep other things than keys and values.*method lora, or prompt"):
            train(tiny.run_of(base, tmp_path, method={name: METHODS[name]}))

    def test_an_encoder_decoder_is_refused(self, name: str) -> None:
        with pytest.raises(Problem, match="leaves half of an encoder-decoder's keys and values unused"):
            method_of(name).apply(tiny.model("t5"))

    def test_shapes_that_do_not_fit_are_refused(self, name: str) -> None:
        """GPT-NeoX has as many keys as queries, whatever its configuration says."""
        with pytest.raises(Problem, match="does not work for GPTNeoXForCausalLM"):
            method_of(name).apply(tiny.model("gpt_neox", num_key_value_heads=2))

    def test_recomputing_padded_rows_is_refused(self, name: str, base: Path, tmp_path: Path) -> None:
        with pytest.raises(Problem, match=r"train\.checkpoint_activations: is on.*padded rows were asked for.*off"):
            tiny.trained(
                base,
                tmp_path,
                method={name: METHODS[name]},
                model={"attention": "padded"},
                train={"checkpoint_activations": "on"},
            )


def test_vectors_of_another_width_fit_neither_use_nor_going_on(base: Path, tmp_path: Path) -> None:
    other = tiny.model(hidden_size=64, head_dim=16)
    method = method_of("prompt", tokens=4)
    method.save(method.apply(other), tmp_path / "saved")
    with pytest.raises(Problem, match="vectors of another shape"):
        method.adopt(loaded(base), tmp_path / "saved")
    config = (tmp_path / "saved/adapter_config.json").read_text("utf-8")
    fixed = config.replace('"base_model_name_or_path": null', f'"base_model_name_or_path": "{base}"')
    fixed = fixed.replace('"base_model_name_or_path": ""', f'"base_model_name_or_path": "{base}"')
    (tmp_path / "saved/adapter_config.json").write_text(fixed, "utf-8")
    with pytest.raises(Problem, match="does not fit its base"):
        open_model(ModelSpec(path=str(tmp_path / "saved"), dtype="float32", device="cpu"))


def test_a_policy_finds_no_ancestor_where_there_is_none() -> None:
    model = tiny.model()
    assert ancestor_of(model).length == 0
    trained = method_of("lora").apply(model)
    assert ancestor_of(trained).length == 0
    assert Policy(model, forest=False, trained=trained).logprobs(tiny.forest()).isfinite().all()
