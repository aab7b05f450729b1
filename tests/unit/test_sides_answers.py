"""Encoder-decoders that answer: batches and streams are transformers' own generate; runs are measured and folded."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from made_codecs import sides_oracle
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel

from tunesmith.cli import __main__ as entry
from tunesmith.cli import screen
from tunesmith.core.plugins import build
from tunesmith.core.problem import Problem
from tunesmith.core.records import Chat, Message, Text
from tunesmith.core.run import DataSpec, ModelSpec
from tunesmith.data.template import TemplateRefusal
from tunesmith.evaluate.results import Results
from tunesmith.evaluate.settings import Settings
from tunesmith.evaluate.verb import evaluate
from tunesmith.generate.engines import Ask
from tunesmith.generate.engines.local import Local, LocalAnswers
from tunesmith.generate.opened import open_model
from tunesmith.generate.sampling import Sampling
from tunesmith.merge.fold import fold
from tunesmith.methods import Method
from tunesmith.models.load import skeleton
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy
from tunesmith.models.source import find
from tunesmith.train.plan import plan
from tunesmith.train.rehearsal import Place, rehearse

PROMPTS = ["hello", "Be kind.\nthe thing in the thing, and a longer question", "in the thing", "你好吗?"]
ASKS: list[Ask] = [
    Chat((Message("user", PROMPTS[0]),)),
    Chat((Message("system", "Be kind."), Message("user", "the thing in the thing, and a longer question"))),
    Text(PROMPTS[2]),
    Chat((Message("user", PROMPTS[3]),)),
]
LABELS = {"good": "positive", "bad": "negative"}


@pytest.fixture(scope="module", params=["t5", "bart"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def answers(base: Path) -> LocalAnswers:
    return opened(base)


def opened(base: Path, **options: Any) -> LocalAnswers:
    found = open_model(ModelSpec(path=str(base), dtype="float32", device="cpu"))
    return Local(**options).bind(found.trained, found.codec)


def own_answer(base: Path, prompt: str, max_tokens: int) -> list[int]:
    """What transformers generates by itself, as its documentation shows it."""
    model = AutoModelForSeq2SeqLM.from_pretrained(base).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    inputs = tokenizer(prompt, return_tensors="pt")
    start = tokenizer("")["input_ids"]
    forced = {"forced_bos_token_id": start[0]} if len(start) > 1 else {}
    ids = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=max_tokens,
        do_sample=False,
        **forced,
    )
    return ids[0, 1:].tolist()


@pytest.mark.parametrize("batch_tokens", [1, 16384])
def test_answers_are_those_of_transformers(base: Path, batch_tokens: int) -> None:
    found = list(opened(base, batch_tokens=batch_tokens).answer(ASKS, Sampling(max_tokens=12)))
    expected = [own_answer(base, prompt, 12) for prompt in PROMPTS]
    assert [list(answer.tokens) for answer in found] == expected
    tokenizer = sides_oracle("t5")
    assert [answer.text for answer in found] == [tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]


def test_a_stream_is_the_answer(answers: LocalAnswers) -> None:
    whole = list(answers.answer(ASKS, Sampling(max_tokens=12)))
    assert ["".join(answers.stream(ask, Sampling(max_tokens=12))) for ask in ASKS] == [each.text for each in whole]


def test_a_stop_text_ends_an_answer(answers: LocalAnswers) -> None:
    sampling = Sampling(max_tokens=20, temperature=1.0, seed=3)
    whole = next(answers.answer(ASKS[:1], sampling)).text
    stop = whole[4:6]
    stopped = next(answers.answer(ASKS[:1], sampling.model_copy(update={"stop": (stop,)})))
    assert stopped.text == whole[: whole.index(stop)]
    assert stopped.ended == "stop"


def test_each_side_has_the_whole_context(base: Path) -> None:
    answering = opened(base)
    if "bart" not in base.name:
        assert answering.context is None
        return
    assert answering.context == 128
    tokens = len(answering.codec.encode_framed(""))
    long = Chat((Message("user", "x" * (128 - tokens)),))
    assert len(next(answering.answer([long], Sampling(max_tokens=400))).tokens) <= 127
    with pytest.raises(Problem, match="has 129 tokens, and the model reads 128"):
        answering.answer([Chat((Message("user", "x" * (129 - tokens)),))], Sampling())


def test_a_chat_that_is_more_than_text_is_refused(answers: LocalAnswers) -> None:
    tools = ({"type": "function", "function": {"name": "f"}},)
    with pytest.raises(Problem, match="there is no chat template") as caught:
        answers.answer([Chat((Message("user", "x"),), tools)], Sampling())
    assert isinstance(caught.value.__cause__, TemplateRefusal)


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA over labelled rows."""
    folder = tmp_path_factory.mktemp("run")
    rows = [
        {"instruction": f"the {'fine' if n % 2 else 'stale'} thing {n}", "output": list(LABELS.values())[n % 2]}
        for n in range(30)
    ]
    options = {"validation": {"fraction": 0.3}, "optimizer": {"adamw": {"lr": 1e-2}}, "train": {"epochs": 2}}
    result = tiny.trained(base, folder, "seq2seq", rows=rows, method={"lora": {"rank": 4}}, **options)
    return result.folder.path


def test_peft_loads_the_adapter(base: Path, run: Path) -> None:
    ours = open_model(ModelSpec(path=str(run), dtype="float32", device="cpu"))
    theirs = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base), str(run / "model")).eval()
    config = json.loads((run / "model" / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_2_SEQ_LM"
    assert not any("lm_head" in name for name in config["target_modules"])
    tokens = torch.arange(5, 15)[None]
    with torch.no_grad():
        found, expected = (model(input_ids=tokens, labels=tokens).logits for model in (ours.trained, theirs))
    assert torch.equal(found, expected)
    assert not torch.equal(found, AutoModelForSeq2SeqLM.from_pretrained(base)(input_ids=tokens, labels=tokens).logits)


def test_a_run_is_measured(base: Path, run: Path) -> None:
    """Perplexity against transformers' loss; labels and answers for every row."""
    settings = Settings(generate=4, sampling=Sampling(max_tokens=6), device="cpu", dtype="float32")
    results = evaluate(str(run), settings=settings)
    shown = {row.name for section in results.sections for row in section.table}
    assert {"accuracy", "perplexity", "exact_match"} <= shown
    assert figures(results, "perplexity")["tuned"] < figures(results, "perplexity")["base"]


def test_perplexity_is_that_of_transformers(base: Path, tmp_path: Path) -> None:
    rows = [{"instruction": "what?", "output": "hello"}, {"instruction": "and the thing", "output": "the the"}]
    data = tiny.rows_file(tmp_path / "rows.jsonl", rows)
    settings = Settings(device="cpu", dtype="float32", labels="none")
    results = evaluate(str(base), [DataSpec(path=str(data))], settings)
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
    total, count = 0.0, 0
    for row in rows:
        prompt, labels = (tokenizer(row[name], return_tensors="pt")["input_ids"] for name in ("instruction", "output"))
        with torch.no_grad():
            total += float(model(input_ids=prompt, labels=labels).loss) * labels.numel()
        count += labels.numel()
    assert figures(results, "perplexity")["model"] == pytest.approx(math.exp(total / count), rel=1e-4)


def figures(results: Results, name: str) -> dict[str, float]:
    (found,) = (row for section in results.sections for row in section.table if row.name == name)
    return {column: figure.value for column, figure in found.figures.items()}


def test_a_folded_run_is_base_and_adapter(base: Path, run: Path, tmp_path: Path) -> None:
    done = fold(str(run), tmp_path / "folded")
    plain = AutoModelForSeq2SeqLM.from_pretrained(done.folder).eval()
    theirs = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base), str(run / "model")).eval()
    tokens = torch.arange(5, 15)[None]
    with torch.no_grad():
        found, expected = (model(input_ids=tokens, labels=tokens).logits for model in (plain, theirs))
    assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()
    assert AutoTokenizer.from_pretrained(done.folder).chat_template is None


def saved_bytes(model: PreTrainedModel, rows: list[Any]) -> int:
    """Bytes that autograd really keeps for a batch."""
    own = {weight.untyped_storage()._cdata for weight in (*model.parameters(), *model.buffers())}
    batch = plant(rows)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = Policy(model, forest=False).logprobs(batch).sum()
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def test_the_plan_counts_what_is_kept(base: Path) -> None:
    """Counted without memory against the same forward pass on real rows, one of them padded.

    Without memory there are no fused kernels of attention, so scores are counted that these do not keep.
    """
    model = AutoModelForSeq2SeqLM.from_pretrained(base).train()
    empty = skeleton(find(str(base))).train()
    rows = tiny.sides_rows()[:1] * 3 + [tiny.sides_rows()[3]]
    full = build("method", "full")
    assert isinstance(full, Method)
    counted = rehearse(empty, empty, full, plant(rows), Place()).kept
    kept = saved_bytes(model, rows)
    assert 0.99 * kept <= counted <= 1.15 * kept


@pytest.mark.parametrize("checkpointing", ["off", "on"])
def test_a_run_is_planned(base: Path, tmp_path: Path, checkpointing: str) -> None:
    run = tiny.run_of(base, tmp_path, "seq2seq", train={"checkpoint_activations": checkpointing})
    found = plan(run)
    assert found.steps == 6
    assert found.memory_bytes > 0


def test_the_command_line_shows_and_talks(
    base: Path, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["tunesmith", *words])
        with pytest.raises(SystemExit) as end:
            sys.exit(entry.main())
        assert not end.value.code
        return capsys.readouterr().out

    monkeypatch.chdir(run.parent)
    told = call("data", "view", "--run", str(run), "--row", "2")
    assert "prompt, read by the encoder" in told
    assert "answer, written by the decoder" in told
    expected = next(opened(base).answer(ASKS[:1], Sampling(max_tokens=5))).text
    said = call("chat", str(base), "--prompt", PROMPTS[0], "--max-tokens", "5")
    assert expected
    assert said.strip() == screen.clean(expected).strip()
