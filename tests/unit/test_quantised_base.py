"""A base in few bits, from the run file to the folded model: nothing of it is silent, and nothing shifts."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tunesmith.core.aliases import expand
from tunesmith.core.events import Event
from tunesmith.core.plugins import build
from tunesmith.core.problem import Problem
from tunesmith.core.run import ModelSpec, Run, parse_run
from tunesmith.evaluate.settings import Settings
from tunesmith.evaluate.subject import Subject
from tunesmith.generate.opened import open_model
from tunesmith.merge.fold import fold
from tunesmith.methods import Method
from tunesmith.models import quantize
from tunesmith.models.heads import HeadSpec
from tunesmith.models.load import load, skeleton
from tunesmith.models.quantize import count, is_held, layers, plain_weight, saved_bytes, settle, write_out
from tunesmith.models.source import find
from tunesmith.train.plan import plan
from tunesmith.train.setup import gather
from tunesmith.train.verb import resume, train

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra quantize)")

TOKENS = torch.arange(3, 43).reshape(2, 20)
LEARNING: dict[str, Any] = {"optimizer": {"adamw": {"lr": 1e-2}}, "train": {"schedule": "constant", "epochs": 2}}


def spec(path: Path, kind: str = "nf4", **options: Any) -> ModelSpec:
    return ModelSpec.model_validate(
        {"path": str(path), "quantize": kind, "dtype": "float32", "device": "cpu"} | options
    )


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS, use_cache=False).logits.float()


def size(values: Tensor) -> float:
    return float(values.abs().max())


def theirs(base: Path) -> Any:
    """The base as transformers and bitsandbytes hold it, without tunesmith."""
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=settings, dtype=torch.float32)
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("quantised") / "base")


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny.trained(base, tmp_path_factory.mktemp("run"), method="qlora", **LEARNING)


class TestAlias:
    def test_stands_for_a_method_and_how_the_base_is_held(self) -> None:
        run = parse_run({"model": "some/model", "data": "rows.jsonl", "method": {"qlora": {"rank": 4}}}, "run")
        assert run.method.spec() == {"lora": {"rank": 4}}
        assert run.model.quantize == "nf4"
        assert run.told == ("method qlora stands for method: lora and model.quantize: nf4",)

    def test_what_is_written_out_needs_no_alias_any_more(self) -> None:
        run = parse_run({"model": "some/model", "data": "rows.jsonl", "method": "qlora"}, "run")
        again = parse_run(run.plain(), "run")
        assert again.plain() == run.plain()
        assert again.told == ()

    @pytest.mark.parametrize("kind", ["int8", "none", "fp4"])
    def test_is_refused_beside_another_way_to_hold_the_base(self, kind: str) -> None:
        with pytest.raises(Problem, match=rf"model.quantize: is {kind}, and method qlora stands for"):
            expand({"model": {"path": "x", "quantize": kind}, "method": "qlora"})
        with pytest.raises(Problem, match="write method: lora"):
            parse_run({"model": {"path": "x", "quantize": kind}, "data": "rows.jsonl", "method": "qlora"}, "run")

    def test_a_misspelt_one_is_named(self) -> None:
        with pytest.raises(Problem, match="'qlora'"):
            parse_run({"model": "x", "data": "rows.jsonl", "method": "qlorra"}, "run")

    def test_a_wrong_option_in_it_is_found(self) -> None:
        with pytest.raises(Problem, match="rank"):
            parse_run({"model": "x", "data": "rows.jsonl", "method": {"qlora": {"rnk": 4}}}, "run")

    @pytest.mark.parametrize("kind", ["int4", "int2", "fp8"])
    def test_what_cannot_be_had_is_refused_with_the_reason(self, kind: str) -> None:
        with pytest.raises(Problem, match=f"{kind} cannot be had: .* Use nf4"):
            parse_run({"model": {"path": "x", "quantize": kind}, "data": "rows.jsonl"}, "run")


class TestHolding:
    @pytest.mark.parametrize("kind", ["nf4", "int8"])
    @pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt2"])
    def test_bytes_are_known_before_loading(self, kind: str, family: str, tmp_path: Path) -> None:
        """To the byte, against the tensors that the libraries really hold."""
        if kind == "int8":
            pytest.importorskip("torchao", reason="torchao is not installed (extra quantize)")
        found = find(str(tiny.folder(tmp_path / family, family)))
        held = settle(spec(found.base, kind), found).held
        assert held is not None
        outline = skeleton(found)
        if (kind, family) == ("int8", "gpt2"):
            with pytest.raises(Problem, match="none of its kind"):
                layers(outline, held)
            return
        reckoned = 4 * count(outline) - saved_bytes(outline, held, torch.float32)
        model = load(spec(found.base, kind)).model
        assert sum(real_bytes(weight) for weight in model.parameters()) == reckoned
        assert count(model) == count(outline)

    @pytest.mark.parametrize("kind", ["nf4", "int8"])
    def test_ends_and_norms_stay_plain(self, kind: str, base: Path) -> None:
        if kind == "int8":
            pytest.importorskip("torchao", reason="torchao is not installed (extra quantize)")
        model = load(spec(base, kind)).model
        few = {name for name, module in model.named_modules() if plain_weight(module) is not None}
        assert {name.rpartition(".")[2] for name in few} == {
            *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        }
        assert len(few) == 7 * 3

    def test_a_score_head_stays_plain(self, base: Path) -> None:
        model = load(spec(base), HeadSpec("score")).model
        assert type(model.score) is torch.nn.Linear
        assert is_held(model)

    @pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
    def test_written_out_it_computes_the_same(self, family: str, tmp_path: Path) -> None:
        model = load(spec(tiny.folder(tmp_path / family, family))).model
        before = logits(model)
        plain = write_out(model)
        assert not is_held(plain)
        assert size(logits(plain) - before) <= 1e-5 * size(before)
        plain.save_pretrained(tmp_path / "plain")
        assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text("utf-8"))
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
        assert size(logits(again) - before) <= 5e-5 * size(before)  # its own attention: sums in another order

    def test_it_is_what_transformers_and_bitsandbytes_hold(self, base: Path) -> None:
        assert torch.equal(logits(load(spec(base)).model), logits(theirs(base)))

    def test_a_missing_package_names_its_extra(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(quantize.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(Problem, match=r"tunesmith\[quantize\]"):
            load(spec(base))

    def test_a_package_that_is_too_old_is_refused(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(quantize.importlib.metadata, "version", lambda name: "0.17.0")
        with pytest.raises(Problem, match=r"is 0\.17\.0 here"):
            load(spec(base))

    def test_a_number_type_is_chosen_by_measuring(self, base: Path) -> None:
        place = settle(spec(base, dtype="auto"), find(str(base)))
        assert "a layer in nf4 runs in bfloat16 at" in place.choice.reasons[1]
        assert place.choice.dtype in (torch.float32, torch.bfloat16)

    def test_bfloat16_computes_and_learns(self, base: Path, tmp_path: Path) -> None:
        result = tiny.trained(base, tmp_path, method="qlora", model={"dtype": "bfloat16"}, **LEARNING)
        losses = tiny.losses(result)
        assert losses[-1] < losses[0]


def real_bytes(weight: Any) -> int:
    """Bytes of a weight with all that its library keeps beside it."""
    parts = [getattr(weight, name) for name in getattr(weight, "tensor_data_names", ())] or [weight]
    state = getattr(weight, "quant_state", None)
    if state is not None:
        parts += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    return sum(part.numel() * part.element_size() for part in parts)


class TestTraining:
    def test_one_step_is_that_of_transformers_peft_and_bitsandbytes(self, base: Path, tmp_path: Path) -> None:
        """The same adapter over both, one step of AdamW on the same rows: the same weights come out."""
        torch.manual_seed(0)
        shape = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj", "down_proj"])
        model = get_peft_model(theirs(base), shape)
        model.save_pretrained(str(tmp_path / "start"))
        method = {"lora": {"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj", "down_proj"]}}
        settings = {"rows_per_step": 12, "steps": 1, "schedule": "constant", "clip_norm": None, "order": "given"}
        result = tiny.trained(
            tmp_path / "start",
            tmp_path,
            "pretrain",
            method=method,
            model={"quantize": "nf4"},
            optimizer={"adamw": {"lr": 1e-3, "weight_decay": 0.0}},
            train=settings,
        )
        optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=1e-3, weight_decay=0.0)
        inputs = gather(tiny.run_of(base, tmp_path / "rows", "pretrain", train=settings), Path(), lambda event: None)
        total, weights = torch.zeros(()), 0
        for number in range(len(inputs.prepared.train)):
            tokens = torch.from_numpy(inputs.prepared.train.row(number).trunk.tokens.astype("int64"))[None]
            found = model.train()(input_ids=tokens, labels=tokens, use_cache=False)
            total, weights = total + found.loss * (tokens.shape[1] - 1), weights + tokens.shape[1] - 1
        (total / weights).backward()
        optimizer.step()
        assert tiny.losses(result)[0] == pytest.approx(float(total.detach()) / weights, rel=1e-5)
        model.save_pretrained(str(tmp_path / "theirs"))
        assert tiny.difference(tiny.tensors(result.folder.model), tiny.tensors(tmp_path / "theirs")) <= 2e-6

    @pytest.mark.parametrize("name", ["full", "freeze", "bitfit"])
    def test_methods_that_change_the_base_are_refused_before_it_is_read(
        self, name: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("it was read"))
        run = tiny.run_of(base, tmp_path, method=name, model={"quantize": "nf4"})
        with pytest.raises(Problem, match=f"method.{name}: needs a plain base .*use the method lora"):
            gather(run, Path(), lambda event: None)

    def test_what_was_chosen_is_told_and_kept(self, trained: Any) -> None:
        told = [event.values["text"] for event in tiny.events(trained, "note")]
        assert "method qlora stands for method: lora and model.quantize: nf4" in told
        assert any(text.startswith("quantize nf4: 21 layers with") and "bitsandbytes" in text for text in told)
        (start,) = tiny.events(trained, "start")
        assert start.values["all"] > 41_000

    def test_a_run_goes_on_with_the_base_as_it_was(self, trained: Any, tmp_path: Path) -> None:
        """From the run's folder, without a word about bits."""
        run = tiny.run_of(trained.folder.path, tmp_path, **LEARNING)
        inputs = gather(run, Path(), lambda event: None)
        assert inputs.run.model.quantize == "nf4"

    @pytest.mark.parametrize("objective", ["reward", "dpo", "pretrain"])
    def test_every_objective_learns(self, objective: str, base: Path, tmp_path: Path) -> None:
        losses = tiny.losses(tiny.trained(base, tmp_path, objective, method="qlora", **LEARNING))
        assert losses[-1] < losses[0]

    def test_loftq_starts_nearer_to_the_original(self, base: Path) -> None:
        """Than the base in few bits alone."""
        original = logits(AutoModelForCausalLM.from_pretrained(base))
        model = load(spec(base)).model
        without = size(logits(model) - original)
        method = build("method", {"lora": {"start": "loftq", "rank": 16}})
        assert isinstance(method, Method)
        assert size(logits(method.apply(model)) - original) < 0.7 * without

    def test_resumed_is_uninterrupted_bit_for_bit(self, base: Path, tmp_path: Path) -> None:
        """With evaluations between the steps, which must leave no trace in the base."""
        options: dict[str, Any] = {
            "method": {"qlora": {"dropout": 0.2}},
            "train": {"epochs": 3, "checkpoint_every": 2, "validate_every": 3},
            "validation": {"fraction": 0.2},
        }
        whole = tiny.trained(base, tmp_path / "rows", **options, output="whole")
        run = tiny.run_of(base, tmp_path / "rows", **options, output="cut")

        def stop(event: Event) -> None:
            if event.kind == "step" and event.step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

        cut = train(run, hear=stop)
        assert cut.ended == "preempted"
        again = resume(cut.folder.path)
        assert again.ended == "done"
        ours, theirs = (tiny.tensors(result.folder.model) for result in (again, whole))
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
        assert tiny.figures(again, "validate") == tiny.figures(whole, "validate")

    def test_the_plan_counts_few_bits(self, base: Path, tmp_path: Path) -> None:
        def weights(kind: str) -> float:
            made = plan(tiny.run_of(base, tmp_path / kind, model={"quantize": kind}))
            number, unit = dict(made.lines)["weights of the model"].split()
            return float(number) * {"KB": 1e3, "MB": 1e6}[unit]

        assert weights("nf4") == pytest.approx(107_472, abs=50)
        assert weights("nf4") < weights("none")


class TestUsing:
    def test_a_run_opens_its_base_as_it_was_trained(self, trained: Any) -> None:
        opened = open_model(ModelSpec(path=str(trained.folder.path), dtype="float32", device="cpu"))
        assert opened.loaded.held is not None
        assert opened.loaded.held.kind == "nf4"
        assert any(note.startswith("quantize nf4") for note in opened.loaded.notes)
        plain = open_model(ModelSpec(path=str(trained.folder.path), quantize="none", dtype="float32", device="cpu"))
        assert plain.loaded.held is None
        assert size(logits(opened.trained) - logits(plain.trained)) > 1e-3

    def test_an_evaluation_says_how_the_base_is_held(self, trained: Any) -> None:
        assert "nf4" in Subject.of(str(trained.folder.path), Settings()).notes[0]
        assert Subject.of(str(trained.folder.path), Settings(quantize="none")).notes == ()

    def test_peft_loads_the_adapter_over_the_plain_base(self, base: Path, trained: Any) -> None:
        config = json.loads((trained.folder.model / "adapter_config.json").read_text("utf-8"))
        assert config["base_model_name_or_path"] == str(base)
        ours = open_model(ModelSpec(path=str(trained.folder.path), quantize="none", dtype="float32", device="cpu"))
        plain = AutoModelForCausalLM.from_pretrained(base)
        expected = logits(PeftModel.from_pretrained(plain, str(trained.folder.model)))
        assert size(logits(ours.trained) - expected) <= 1e-5 * size(expected)


class TestFolding:
    def test_the_model_that_was_trained_is_written(self, base: Path, trained: Any, tmp_path: Path) -> None:
        done = fold(str(trained.folder.path), tmp_path / "folded")
        held = PeftModel.from_pretrained(theirs(base), str(trained.folder.model))
        found = AutoModelForCausalLM.from_pretrained(done.folder)
        expected = logits(held)
        assert size(logits(found) - expected) <= 1e-5 * size(expected)
        assert done.difference <= 1e-5
        assert done.shift is not None
        assert done.shift.difference > 100 * done.difference
        assert "written out of nf4" in done.lines[2]
        assert "quantization_config" not in json.loads((done.folder / "config.json").read_text("utf-8"))

    def test_the_original_weights_are_written_where_they_are_asked_for(
        self, base: Path, trained: Any, tmp_path: Path
    ) -> None:
        done = fold(str(trained.folder.path), tmp_path / "folded", base="original")
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(trained.folder.model))
        found = AutoModelForCausalLM.from_pretrained(done.folder)
        expected = logits(plain)
        assert size(logits(found) - expected) <= 1e-5 * size(expected)
        assert done.original
        assert done.shift is not None
        assert "is" in done.lines[2] and "away" in done.lines[2]

    @pytest.mark.parametrize(
        ("family", "options", "kind"),
        [("gpt2", {}, "nf4"), ("llama", {"form": "dora"}, "nf4"), ("llama", {"form": "dora"}, "int8")],
    )
    def test_other_layers_forms_and_kinds(
        self, family: str, options: dict[str, Any], kind: str, tmp_path: Path
    ) -> None:
        if kind == "int8":
            pytest.importorskip("torchao", reason="torchao is not installed (extra quantize)")
        base = tiny.folder(tmp_path / family, family)
        run = tiny.trained(base, tmp_path, method={"lora": options}, model={"quantize": kind}, **LEARNING)
        done = fold(str(run.folder.path))
        opened = open_model(ModelSpec(path=str(run.folder.path), dtype="float32", device="cpu"))
        expected = logits(opened.trained)
        assert size(logits(AutoModelForCausalLM.from_pretrained(done.folder)) - expected) <= 1e-5 * size(expected)
        original = fold(str(run.folder.path), tmp_path / "original", base="original")
        assert original.difference <= 1e-5

    def test_what_was_quantised_from_bfloat16_is_folded_from_the_same_bits(self, base: Path, tmp_path: Path) -> None:
        run = tiny.trained(base, tmp_path, method="qlora", model={"dtype": "bfloat16"}, **LEARNING)
        done = fold(str(run.folder.path), dtype="float32")
        assert done.difference <= 1e-5


class TestFilesThatCameSo:
    @pytest.fixture(scope="class")
    def few(self, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("few") / "base"
        theirs(base).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (base / name).is_file():
                (folder / name).write_bytes((base / name).read_bytes())
        return folder

    def test_they_are_held_as_they_came(self, few: Path, base: Path) -> None:
        loaded = load(spec(few, "auto"))
        assert loaded.held is not None
        assert (loaded.held.kind, loaded.held.own) == ("nf4", True)
        assert torch.equal(logits(loaded.model), logits(load(spec(base)).model))

    def test_they_are_trained_over_and_folded(self, few: Path, tmp_path: Path) -> None:
        run = tiny.trained(few, tmp_path, **LEARNING)
        losses = tiny.losses(run)
        assert losses[-1] < losses[0]
        opened = open_model(ModelSpec(path=str(run.folder.path), dtype="float32", device="cpu"))
        expected = logits(opened.trained)
        done = fold(str(run.folder.path))
        assert done.shift is None
        assert size(logits(AutoModelForCausalLM.from_pretrained(done.folder)) - expected) <= 1e-5 * size(expected)
        with pytest.raises(Problem, match="no original weights"):
            fold(str(run.folder.path), tmp_path / "other", base="original")

    def test_another_kind_is_refused(self, few: Path) -> None:
        for kind in ("none", "int8", "nf4"):
            with pytest.raises(Problem, match="quantised already"):
                load(spec(few, kind))

    def test_methods_that_need_a_plain_base_are_refused(self, few: Path, tmp_path: Path) -> None:
        with pytest.raises(Problem, match="its files are quantised"):
            gather(tiny.run_of(few, tmp_path, method="full"), Path(), lambda event: None)

    @pytest.mark.parametrize(("method", "word"), [("gptq", "gptqmodel"), ("awq", "gptqmodel"), ("hqq", "hqq")])
    def test_a_missing_package_is_named(self, method: str, word: str, few: Path, tmp_path: Path) -> None:
        if quantize.importlib.util.find_spec(word) is not None:
            pytest.skip(f"{word} is installed here")
        folder = tmp_path / method
        folder.mkdir()
        for file in few.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        config = json.loads((few / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
        with pytest.raises(Problem, match=f"pip install {word}"):
            load(spec(folder, "auto"))

    def test_int8_of_bitsandbytes_is_used_but_not_trained_over_on_a_cpu(self, base: Path, tmp_path: Path) -> None:
        settings = BitsAndBytesConfig(load_in_8bit=True)
        folder = tmp_path / "eight"
        AutoModelForCausalLM.from_pretrained(base, quantization_config=settings).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (base / name).is_file():
                (folder / name).write_bytes((base / name).read_bytes())
        assert load(spec(folder, "auto")).held is not None
        with pytest.raises(Problem, match="nothing trains over this base"):
            gather(tiny.run_of(folder, tmp_path), Path(), lambda event: None)


def test_a_plain_run_says_so(base: Path, tmp_path: Path) -> None:
    inputs = gather(tiny.run_of(base, tmp_path), Path(), lambda event: None)
    assert isinstance(inputs.run, Run)
    assert inputs.run.model.quantize == "none"
