"""Several adapters over one base: each answer is that of its adapter alone, and the base is untouched beneath them."""

from __future__ import annotations

import functools
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from made_methods import method_of, shake
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tunesmith.core.plugins import names
from tunesmith.core.problem import Problem
from tunesmith.core.records import Chat, Message, Text
from tunesmith.core.run import ModelSpec
from tunesmith.generate.engines import Ask
from tunesmith.generate.engines.local import Local, LocalAnswers
from tunesmith.generate.opened import open_model
from tunesmith.generate.sampling import Sampling
from tunesmith.generate.shelf import Shelf
from tunesmith.merge.combine import Part, combine
from tunesmith.models.load import load_codec
from tunesmith.models.source import find
from tunesmith.models.twin import twin

SHORT = Sampling(max_tokens=8)
ASKS: list[Ask] = [
    Text("what is rain?"),
    Chat((Message("user", "what is a lark, and what is tin?"),)),
    Text("in the city"),
    Text("salt"),
    Text("what is an oak"),
    Chat((Message("user", "ink"),)),
]
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "lora": [{}, {"form": "dora"}, {"scaling": "rank_stabilized"}, {"start": "pissa", "rank": 4}],
    "oft": [{"block_size": 16}],
    "prompt": [{"tokens": 4}],
    "prefix": [{"tokens": 4, "hidden": 16}],
    "p_tuning": [{"tokens": 4, "hidden": 16}],
    "p_tuning_v2": [{"tokens": 4}],
    "peft": [{"type": "hra"}],
    "medusa": [{}, {"base": "learns"}],
    "mixture_of_depths": [{}, {"learns": "all"}],
    "bitfit": [{"parts": "norms"}],
}
CASES = [
    pytest.param(name, options, id=f"{name}-{json.dumps(options)}")
    for name in names("method")
    for options in OPTIONS.get(name, [{}])
]


def spec(path: Path) -> ModelSpec:
    return ModelSpec(path=str(path), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("shelf") / "base")


def lora(base: Path, folder: Path, seed: int = 1, **options: Any) -> Path:
    """A LoRA adapter with random factors, made and saved by PEFT."""
    sides = "t5" in json.loads((base / "config.json").read_text("utf-8"))["model_type"]
    model = (AutoModelForSeq2SeqLM if sides else AutoModelForCausalLM).from_pretrained(base)
    usual = {"r": 4, "lora_alpha": 6, "target_modules": ["q", "v"] if sides else ["q_proj", "down_proj"]}
    task = "SEQ_2_SEQ_LM" if sides else "CAUSAL_LM"
    made = get_peft_model(model, LoraConfig(init_lora_weights=False, **{**usual, "task_type": task, **options}))
    torch.manual_seed(seed)
    with torch.no_grad():
        for label, weight in made.named_parameters():
            if weight.requires_grad and "magnitude" not in label:
                weight.normal_(std=0.4)
    made.peft_config["default"].base_model_name_or_path = str(base)
    made.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


@pytest.fixture(scope="module")
def folders(base: Path) -> dict[str, Path]:
    """Adapters of many kinds over one base."""
    made = base.parent
    soft = method_of("prompt", tokens=4)
    trained = soft.apply(AutoModelForCausalLM.from_pretrained(base))
    shake(trained, 3.0)
    soft.save(trained, made / "soft")
    return {
        "one": lora(base, made / "one", 1),
        "two": lora(base, made / "two", 2, r=3, use_rslora=True, lora_alpha=3),
        "dora": lora(base, made / "dora", 3, use_dora=True),
        "wide": lora(base, made / "wide", 4, target_modules=["embed_tokens", "v_proj"]),
        "heads": lora(base, made / "heads", 5, modules_to_save=["lm_head"]),
        "soft": made / "soft",
    }


def shelf_of(base: Path, folders: dict[str, Path]) -> Shelf:
    shelf = Shelf.open(spec(base))
    for name, folder in folders.items():
        shelf.load(name, folder)
    return shelf


@pytest.fixture
def shelf(base: Path, folders: dict[str, Path]) -> Shelf:
    return shelf_of(base, folders)


def tokens_of(answers: Any, asks: list[Ask] = ASKS, **more: Any) -> list[tuple[int, ...]]:
    return [answer.tokens for answer in answers.answer(asks, SHORT, **more)]


@functools.cache
def apart(folder: Path) -> LocalAnswers:
    """The oracle: a model of its own with one adapter."""
    return Local().open(spec(folder))


def alone(folder: Path, ask: Ask) -> tuple[int, ...]:
    """What it answers when it is asked one thing."""
    return next(apart(folder).answer([ask], SHORT)).tokens


def logits(shelf: Shelf, *rows: tuple[str, ...]) -> Tensor:
    """[B, V] logits after the same text in one batch, each row with its own adapters."""
    planned = [shelf._moment.job(Text("what is rain?"), SHORT, row) for row in rows]
    answers = planned[-1][0]
    assert len({id(found) for found, _ in planned}) == 1 or len(rows) > 1
    jobs = [job for _, job in planned]
    with answers._ready():
        tokens = torch.tensor([job.tokens for job in jobs])
        return answers.model(input_ids=tokens, **answers._further(jobs)).logits[:, -1]


def logits_alone(folder: Path) -> Tensor:
    opened = open_model(spec(folder))
    tokens = torch.tensor([opened.codec.encode_text("what is rain?")])
    with torch.no_grad():
        return opened.trained(input_ids=tokens).logits[:, -1]


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


class TestTwin:
    @pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
    def test_has_modules_of_its_own_over_the_same_tensors(self, family: str) -> None:
        model = tiny.model(family)
        second = twin(model)
        assert all(ours is theirs for ours, theirs in zip(second.parameters(), model.parameters(), strict=True))
        assert all(ours is theirs for ours, theirs in zip(second.buffers(), model.buffers(), strict=True))
        assert not set(map(id, second.modules())) & set(map(id, model.modules()))

    def test_of_tied_weights_kept_apart_stays_tied(self) -> None:
        model: Any = tiny.model("llama", tie_word_embeddings=True)
        second: Any = twin(model, ["lm_head.weight"])
        assert second.lm_head.weight is second.model.embed_tokens.weight
        assert second.lm_head.weight is not model.get_input_embeddings().weight
        assert torch.equal(second.lm_head.weight, model.get_input_embeddings().weight)

    def test_shares_what_a_quantised_layer_keeps_beside_its_weight(self) -> None:
        bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
        first: Any = nn.Sequential(bitsandbytes.nn.Linear4bit(64, 64, quant_type="nf4")).to("cpu")
        second: Any = twin(first)
        assert second[0].weight is first[0].weight
        assert second[0].weight.quant_state.absmax is first[0].weight.quant_state.absmax
        rows = torch.randn(2, 64)
        assert torch.equal(second(rows), first(rows))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_every_method_answers_as_alone_and_leaves_the_base(
    name: str, options: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    method = method_of(name, **options)
    trained = method.apply(AutoModelForCausalLM.from_pretrained(base))
    shake(trained, 0.3)
    method.save(trained, tmp_path / "made")
    shelf = Shelf.open(spec(base))
    before = logits(shelf, ())
    weights = {label: weight.clone() for label, weight in shelf.loaded.model.state_dict().items()}
    if not (tmp_path / "made/adapter_config.json").is_file():
        shutil.copytree(base, tmp_path / "whole", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
        shutil.copytree(tmp_path / "made", tmp_path / "whole", dirs_exist_ok=True)
        with pytest.raises(Problem, match="is a whole model"):
            shelf.load("it", tmp_path / "whole")
        return
    shelf.load("it", tmp_path / "made")
    shelf.use("it")
    assert tokens_of(shelf, ASKS[:2]) == [alone(tmp_path / "made", ask) for ask in ASKS[:2]]
    assert torch.equal(logits(shelf, ()), before)
    after = shelf.loaded.model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[label], weight) for label, weight in weights.items())


class TestUse:
    def test_one_after_the_other_and_the_base_bit_for_bit(
        self, shelf: Shelf, base: Path, folders: dict[str, Path]
    ) -> None:
        untouched = logits_alone(base)
        for name, folder in folders.items():
            shelf.use(name)
            assert tokens_of(shelf, ASKS[:2]) == [alone(folder, ask) for ask in ASKS[:2]]
            assert "".join(shelf.stream(ASKS[0], SHORT)) == next(shelf.answer(ASKS[:1], SHORT)).text
        shelf.use()
        assert tokens_of(shelf) == [alone(base, ask) for ask in ASKS]
        assert torch.equal(logits(shelf, ()), untouched)

    @pytest.mark.parametrize("together", [("one", "two"), ("two", "one", "wide")])
    def test_several_together_are_the_exact_sum(
        self, together: tuple[str, ...], shelf: Shelf, folders: dict[str, Path], tmp_path: Path
    ) -> None:
        summed = [name for name in together if name != "wide"]
        combine([Part(str(folders[name]), 1.0) for name in summed], tmp_path / "sum")
        wanted = logits_alone(tmp_path / "sum")
        if "wide" in together:  # an embedding's change has no place in combine, so weights are added here
            total = sum(
                (_merged(folders[n]) - _merged(folders[n], off=True) for n in together),
                _merged(folders["one"], off=True),
            )
            wanted = _with(folders["one"], total)
        assert off(logits(shelf, together), wanted) < 1e-5
        assert off(logits(shelf, ("one",)), wanted) > 1e-2
        assert torch.equal(logits(shelf, ("one",)), logits_alone(folders["one"]))

    def test_what_cannot_be_added_is_refused_with_the_reason(self, shelf: Shelf) -> None:
        for name, reason in {"dora": "DoRA", "heads": "replaces whole layers", "soft": "PROMPT_TUNING"}.items():
            with pytest.raises(Problem, match=f"cannot be added to others: .*{reason}"):
                shelf.use("one", name)
        with pytest.raises(Problem, match="twice"):
            shelf.use("one", "one")
        with pytest.raises(Problem, match="Did you mean 'dora'"):
            shelf.use("dorra")
        assert shelf.used == ()

    def test_nothing_learns(self, shelf: Shelf) -> None:
        shelf.use("one", "two")
        tokens_of(shelf)
        assert not any(weight.requires_grad for model in models(shelf) for weight in model.parameters())

    def test_layers_that_hold_their_weights_transposed(self, tmp_path: Path) -> None:
        base = tiny.folder(tmp_path / "base", "gpt2")
        layers: dict[str, Any] = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
        folders = {name: lora(base, tmp_path / name, seed, **layers) for seed, name in enumerate(("one", "two"))}
        folders["biases"] = lora(base, tmp_path / "biases", 3, **layers, bias="all")
        shelf = shelf_of(base, folders)
        combine([Part(str(folders[name]), 1.0) for name in ("one", "two")], tmp_path / "sum")
        assert off(logits(shelf, ("one", "two")), logits_alone(tmp_path / "sum")) < 1e-5
        assert off(logits(shelf, ("biases",)), logits_alone(folders["biases"])) < 1e-5
        found = logits(shelf, (), ("two",), ("one",))
        for row, where in enumerate((base, folders["two"], folders["one"])):
            assert off(found[row : row + 1], logits_alone(where)) < 1e-5
        with pytest.raises(Problem, match="trained biases of the base"):
            shelf.use("one", "biases")

    @pytest.mark.parametrize("held", ["nf4", "int8"])
    def test_over_a_quantised_base(self, held: str, base: Path, folders: dict[str, Path]) -> None:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
        kept: dict[str, Any] = {"dtype": "float32", "device": "cpu", "quantize": held}
        shelf = Shelf.open(ModelSpec(path=str(base), **kept))
        for name in ("one", "two"):
            shelf.load(name, folders[name])
        found = tokens_of(shelf, ASKS[:3], adapters=["one", None, "two"])
        single = [Local().open(ModelSpec(path=str(path), **kept)) for path in (folders["one"], base, folders["two"])]
        assert found == [tokens_of(model, [ask])[0] for model, ask in zip(single, ASKS[:3], strict=True)]
        first = {weight.data_ptr() for weight in shelf.loaded.model.parameters()}
        assert all(first == {w.data_ptr() for w in model.parameters()} & first for model in models(shelf))

    def test_runs_are_spoken_to_alike(self, base: Path, tmp_path: Path) -> None:
        runs = [tiny.trained(base, tmp_path, method={"lora": {"rank": rank}}, output=f"r{rank}") for rank in (2, 3)]
        shelf = shelf_of(base, {f"r{number}": run.folder.path for number, run in enumerate(runs)})
        assert all(worn.codec is shelf.loaded.codec for worn in shelf.adapters.values())
        shelf.use("r0", "r1")
        assert len(tokens_of(shelf)) == len(ASKS)

    def test_an_encoder_decoder(self, tmp_path: Path) -> None:
        base = tiny.folder(tmp_path / "base", "t5")
        folders = {name: lora(base, tmp_path / name, seed) for seed, name in enumerate(("one", "two"), 1)}
        shelf, asks = shelf_of(base, folders), ASKS[2:5]
        found = tokens_of(shelf, asks, adapters=["one", None, "two"])
        assert found == [
            alone(where, ask) for where, ask in zip((folders["one"], base, folders["two"]), asks, strict=True)
        ]
        assert len(set(found)) == 3


def _merged(folder: Path, off: bool = False) -> Tensor:
    """All weights of the base in a row, with an adapter merged by PEFT."""
    opened = open_model(spec(folder))
    model: Any = opened.trained.unload() if off else opened.trained.merge_and_unload()  # type: ignore[operator]
    return torch.cat([weight.double().flatten() for weight in model.state_dict().values()])


def _with(folder: Path, values: Tensor) -> Tensor:
    model: Any = open_model(spec(find(str(folder)).base)).model
    place = 0
    for weight in model.state_dict().values():
        weight.copy_(values[place : place + weight.numel()].view_as(weight))
        place += weight.numel()
    tokens = torch.tensor([load_codec(find(str(folder))).encode_text("what is rain?")])
    with torch.no_grad():
        return model(input_ids=tokens).logits[:, -1]


def models(shelf: Shelf) -> list[nn.Module]:
    """All models of a shelf that is not changed meanwhile."""
    moment = shelf._moment
    found = [worn.model for worn in shelf.adapters.values() if worn.model is not None]
    return [*found, shelf.loaded.model, moment._bare.model, moment.shelved.loras.model, moment.shelved.loras.running]  # type: ignore[list-item]


class TestMixedBatch:
    ROWS: list[str | None] = ["one", "dora", None, "two", "soft", "one+two"]

    def test_each_row_is_answered_as_with_its_adapter_alone(
        self, shelf: Shelf, base: Path, folders: dict[str, Path], tmp_path: Path
    ) -> None:
        combine([Part(str(folders[name]), 1.0) for name in ("one", "two")], tmp_path / "sum")
        oracle = {**folders, None: base, "one+two": tmp_path / "sum"}
        shelf.use("wide")
        found = tokens_of(shelf, adapters=self.ROWS)
        assert found == [alone(oracle[row], ask) for row, ask in zip(self.ROWS, ASKS, strict=True)]
        same = tokens_of(shelf, [ASKS[0]] * 6, adapters=self.ROWS)
        assert len(set(same)) == 6, "every adapter must matter, or this test tells nothing"

    def test_lora_rows_and_plain_ones_share_a_batch(self, shelf: Shelf, folders: dict[str, Path], base: Path) -> None:
        rows: list[tuple[str, ...]] = [("one",), (), ("two",), ("wide",)]
        batches = shelf._moment.batches(dict(enumerate([Text("rain")] * 4)), SHORT, rows)
        assert [len(batch) for _, batch in batches] == [4]
        found = logits(shelf, (), ("one",), ("two",), ("wide",))
        for row, where in enumerate((base, folders["one"], folders["two"], folders["wide"])):
            assert off(found[row : row + 1], logits_alone(where)) < 1e-5

    def test_a_batch_that_was_broken_off_leaves_no_trace(self, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
        wanted = tokens_of(shelf, adapters=self.ROWS)
        with monkeypatch.context() as patch:
            patch.setattr("torch.nn.functional.silu", _fails)
            patch.setattr(nn.SiLU, "forward", _fails)
            with pytest.raises(MemoryError):
                tokens_of(shelf, adapters=self.ROWS)
        assert tokens_of(shelf, adapters=self.ROWS) == wanted
        assert tokens_of(shelf.wearing("two")) == tokens_of(shelf, adapters=["two"] * 6)

    def test_answers_come_in_order_and_while_others_are_drawn(self, shelf: Shelf) -> None:
        shelf.batch_tokens = 1
        shelf.use("one")
        found = shelf.answer(ASKS, SHORT, adapters=["two", None, "one", "soft", "two", None])
        assert [answer.tokens for answer in found] == [
            tokens_of(shelf, [ask], adapters=[row])[0]
            for ask, row in zip(ASKS, ["two", None, "one", "soft", "two", None], strict=True)
        ]


def _fails(*_: Any, **__: Any) -> Tensor:
    raise MemoryError


class TestLoad:
    def test_a_name_may_be_any_word(self, base: Path, folders: dict[str, Path]) -> None:
        words = ["keys", "default", "__base__", "lora_A", "a.b", "one", "one1"]
        shelf = shelf_of(base, {word: folders["two" if word == "one1" else "one"] for word in words})
        wanted = alone(folders["one"], ASKS[0])
        asked = tokens_of(shelf, [ASKS[0]] * len(words), adapters=words)
        assert asked == [wanted] * 6 + [alone(folders["two"], ASKS[0])]

    @pytest.mark.parametrize("name", ["", "base", "a+b", "a=b", "a b"])
    def test_a_name_that_means_something_else_is_refused(self, name: str, base: Path, folders: dict[str, Path]) -> None:
        with pytest.raises(Problem, match="no name for an adapter"):
            Shelf.open(spec(base)).load(name, folders["one"])

    def test_what_does_not_belong_here_is_refused(self, base: Path, folders: dict[str, Path], tmp_path: Path) -> None:
        other = tiny.folder(tmp_path / "other", seed=3)
        pissa = shutil.copytree(folders["one"], tmp_path / "pissa")
        config = json.loads((pissa / "adapter_config.json").read_text("utf-8"))
        (pissa / "adapter_config.json").write_text(
            json.dumps({**config, "init_lora_weights": "pissa_niter_4"}), "utf-8"
        )
        shelf = Shelf.open(spec(base))
        for folder, reason in {
            lora(other, tmp_path / "foreign"): "is an adapter of .*other, not of .*base",
            lora(base, tmp_path / "score", task_type="SEQ_CLS"): "scores answers",
            pissa: "out of the base's weights",
            tmp_path / "nowhere": "no such folder",
        }.items():
            with pytest.raises(Problem, match=reason):
                shelf.load("it", folder)
        with pytest.raises(Problem, match="Name its base"):
            Shelf.open(spec(folders["one"]))
        assert not shelf.adapters

    def test_the_same_base_in_another_place(self, base: Path, tmp_path: Path) -> None:
        copied = shutil.copytree(base, tmp_path / "copy")
        folder = lora(copied, tmp_path / "one")
        shelf = shelf_of(base, {"one": folder})
        assert tokens_of(shelf, ASKS[:1], adapters=["one"]) == [alone(folder, ASKS[0])]

    def test_a_template_of_its_own_is_spoken_to_its_adapter(
        self, base: Path, folders: dict[str, Path], tmp_path: Path
    ) -> None:
        own = shutil.copytree(folders["one"], tmp_path / "own")
        for file in base.glob("*.json*"):
            if "token" in file.name:
                shutil.copy(file, own)
        (own / "chat_template.jinja").write_text(
            "{% for m in messages %}it says {{ m.content }}. {% endfor %}so:", "utf-8"
        )
        shelf = shelf_of(base, {"own": own, "one": folders["one"], "two": folders["two"]})
        rows = ["own", "one", "two"]
        found = tokens_of(shelf, [ASKS[1]] * 3, adapters=rows)
        assert found == [alone(where, ASKS[1]) for where in (own, folders["one"], folders["two"])]
        assert found[0] != found[1]
        with pytest.raises(Problem, match="different tokenizers or chat templates"):
            shelf.use("own", "two")

    def test_dropped(self, shelf: Shelf, folders: dict[str, Path]) -> None:
        shelf.use("one", "two")
        with pytest.raises(Problem, match="is in use"):
            shelf.drop("one")
        shelf.use()
        for name in ("one", "soft", "dora", "wide"):
            shelf.drop(name)
        assert list(shelf.adapters) == ["two", "heads"]
        assert tokens_of(shelf, ASKS[:1], adapters=["two"]) == [alone(folders["two"], ASKS[0])]
        with pytest.raises(Problem, match="is not on the shelf"):
            shelf.answer(ASKS[:1], SHORT, adapters=["one"])
        shelf.drop("two")
        shelf.load("two", folders["one"])
        assert tokens_of(shelf, ASKS[:1], adapters=["two"]) == [alone(folders["one"], ASKS[0])]

    def test_the_base_is_in_memory_once(self, shelf: Shelf) -> None:
        first = {weight.data_ptr(): weight.numel() for weight in shelf.loaded.model.parameters()}
        held = {weight.data_ptr(): weight.numel() for model in models(shelf) for weight in model.parameters()}
        learned = sum(
            value.numel()
            for worn in shelf.adapters.values()
            for name, value in load_file(worn.folder / "adapter_model.safetensors").items()
        )
        assert first.keys() <= held.keys()
        # PEFT keeps a whole layer that was replaced as a copy in training and one to go back to
        spare = shelf.loaded.codec.vocab_size * 32
        assert sum(held.values()) <= sum(first.values()) + learned + spare


class TestHotSwap:
    def swapped(self, shelf: Shelf, name: str, folder: Path) -> threading.Thread:
        thread = threading.Thread(target=shelf.load, args=(name, folder))
        thread.start()
        return thread

    @pytest.mark.parametrize("kinds", [("one", "two"), ("dora", "soft"), ("soft", "one"), ("two", "dora")])
    def test_an_answer_that_began_ends_with_the_old_and_waiting_ones_get_the_new(
        self, kinds: tuple[str, str], base: Path, folders: dict[str, Path]
    ) -> None:
        old, new = (folders[kind] for kind in kinds)
        shelf = shelf_of(base, {"it": old})
        shelf.use("it")
        stream = shelf.stream(ASKS[0], SHORT)
        started, ended = threading.Event(), threading.Event()
        answers = shelf._moment.job(ASKS[0], SHORT, None)[0]
        layer = next(iter(answers.base.model.layers))

        def wait(*_: Any) -> None:
            started.set()
            assert ended.wait(20)

        handle = layer.register_forward_hook(wait)
        pieces: list[str] = []
        reading = threading.Thread(target=lambda: pieces.extend(stream))
        reading.start()
        assert started.wait(20)
        waiting: list[tuple[int, ...]] = []
        asking = threading.Thread(target=lambda: waiting.extend(tokens_of(shelf, ASKS[:1])))
        planned = shelf.answer(ASKS[:1], SHORT)
        asking.start()
        self.swapped(shelf, "it", new).join()  # while the first one is in the middle of its answer
        ended.set()
        reading.join()
        asking.join()
        handle.remove()
        assert "".join(pieces) == next(apart(old).answer(ASKS[:1], SHORT)).text
        assert waiting == [alone(new, ASKS[0])] == [next(planned).tokens]
        assert alone(old, ASKS[0]) != alone(new, ASKS[0])

    def test_many_swaps_while_many_ask(self, base: Path, folders: dict[str, Path]) -> None:
        kinds = ["one", "two", "dora", "soft"]
        right = {alone(folders[kind], ASKS[0]) for kind in kinds}
        plain = alone(base, ASKS[0])
        shelf = shelf_of(base, {"it": folders["one"], "still": folders["two"]})
        still = alone(folders["two"], ASKS[0])
        faults: list[BaseException] = []
        done = threading.Event()

        def ask() -> None:
            try:
                while not done.is_set():
                    changing, same, none = tokens_of(shelf, [ASKS[0]] * 3, adapters=["it", "still", None])
                    assert changing in right
                    assert (same, none) == (still, plain)
            except BaseException as fault:
                faults.append(fault)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(12):
            shelf.load("it", folders[kinds[number % 4]])
        done.set()
        for thread in threads:
            thread.join()
        assert not faults
        assert tokens_of(shelf, ASKS[:1], adapters=["it"]) == [alone(folders["soft"], ASKS[0])]

    def test_a_broken_folder_leaves_the_old_one(self, shelf: Shelf, folders: dict[str, Path], tmp_path: Path) -> None:
        shelf.use("one", "two")
        before, shelved = tokens_of(shelf), shelf._moment.shelved
        for number, spoil in enumerate((_cut, _lose_one, _other_shape)):
            broken = shutil.copytree(folders["one"], tmp_path / str(number))
            spoil(broken / "adapter_model.safetensors")
            with pytest.raises(Problem):
                shelf.load("one", broken)
        with pytest.raises(Problem, match="cannot be added to others"):
            shelf.load("one", folders["dora"])  # it is worn together with another
        assert shelf._moment.shelved is shelved
        assert tokens_of(shelf) == before


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _lose_one(file: Path) -> None:
    held = load_file(file)
    held.pop(next(iter(held)))
    save_file(held, file)


def _other_shape(file: Path) -> None:
    save_file({name: value[:1].clone() for name, value in load_file(file).items()}, file)
