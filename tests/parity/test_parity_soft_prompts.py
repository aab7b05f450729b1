"""Soft prompts compute what PEFT computes on the same weights, and adapters go both ways."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tiny
import torch
from peft import (
    CPTConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from tunesmith.core.plugins import build
from tunesmith.core.problem import Problem
from tunesmith.core.records import Text
from tunesmith.core.rows import Piece, TokenRow
from tunesmith.core.run import ModelSpec
from tunesmith.generate.engines.local import Local
from tunesmith.generate.opened import open_model
from tunesmith.generate.sampling import Sampling
from tunesmith.methods import Method, trainable
from tunesmith.models.ancestor import ancestor_of
from tunesmith.models.attention import NAME
from tunesmith.models.forest import Batch
from tunesmith.models.heads import HeadSpec
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy
from tunesmith.objectives import next_token_loss

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt": ("prompt", {"tokens": 5, "start": "random"}),
    "p_tuning-mlp": ("p_tuning", {"tokens": 5, "hidden": 16}),
    "p_tuning-lstm": ("p_tuning", {"tokens": 5, "hidden": 8, "encoder": "lstm"}),
    "prefix-mlp": ("prefix", {"tokens": 5, "hidden": 16}),
    "prefix-free": ("prefix", {"tokens": 5, "projection": "none"}),
    "p_tuning_v2": ("p_tuning_v2", {"tokens": 9}),
    "p_tuning_v2-zero": ("p_tuning_v2", {"tokens": 3, "start": "zero"}),
}
FAMILIES = ("llama", "gpt2", "gemma2", "mistral")
"""GPT-2 counts its own positions; the windows of the last two pass 5 and 9 vectors inside of a row."""
PEFTS: dict[str, PeftConfig] = {
    "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "p_tuning": PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=16),
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "prefix-mlp": PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=16
    ),
}
ASKS = [Text(text) for text in ("what is rain", "oak", "salt is a mineral that tastes like a canoe", "Rome is in the")]
TOKENS = torch.arange(3, 43).reshape(2, 20)


def method_of(kind: str, **changes: Any) -> Method:
    name, options = KINDS[kind]
    found = build("method", {name: {**options, **changes}})
    assert isinstance(found, Method)
    return found


def grown(trained: nn.Module, loss: Tensor) -> tuple[float, list[Tensor]]:
    return loss.item(), list(torch.autograd.grad(loss, list(trainable(trained).values())))


def plain_rows() -> list[TokenRow]:
    """Rows of uneven lengths, of which every token but the first is learned."""
    draw = np.random.default_rng(1)
    sizes = (21, 9, 14)
    pieces = [Piece(draw.integers(3, 200, n).astype(np.int32), np.ones(n, np.float32)) for n in sizes]
    return [TokenRow(piece, index=number) for number, piece in enumerate(pieces)]


def pefts_loss(trained: nn.Module, batch: Batch) -> Tensor:
    """The sum of cross-entropies over rows padded on the right, by PEFT's own forward.

    The first token of a row is left out: PEFT would have a virtual token predict it.
    """
    padded = batch.padded()
    labels = padded.tokens.masked_fill(padded.mask == 0, -100)
    labels[:, 0] = -100
    loss = trained(input_ids=padded.tokens, attention_mask=padded.mask, labels=labels).loss
    return loss * (labels[:, 1:] != -100).sum()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_pefts_forward(kind: str, family: str) -> None:
    model = tiny.model(family)
    trained = method_of(kind).apply(model).eval()
    batch = plant(plain_rows())
    model.set_attn_implementation("eager")
    theirs = grown(trained, pefts_loss(trained, batch))
    model.set_attn_implementation(NAME)
    for forest in (True, False):
        ours = grown(trained, next_token_loss(Policy(model, forest=forest, trained=trained), batch))
        assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
        for found, expected in zip(ours[1], theirs[1], strict=True):
            assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("kind", ["prompt", "p_tuning-mlp", "p_tuning-lstm"])
def test_before_an_encoder_too(kind: str, family: str) -> None:
    """Answers to prompts of uneven lengths; PEFT's forward pads prompts and labels on the right."""
    model = tiny.model(family)
    trained = method_of(kind).apply(model).eval()
    rows = tiny.pair_rows()
    batch = plant(rows)
    ours = grown(trained, next_token_loss(Policy(model, forest=False, trained=trained), batch))
    theirs = torch.zeros(())
    for row in rows:
        for branch in row.branches:
            prompt, answer = (torch.from_numpy(part.tokens.astype(np.int64))[None] for part in (row.trunk, branch))
            loss = trained(input_ids=prompt, attention_mask=torch.ones_like(prompt), labels=answer).loss
            theirs = theirs + loss * answer.numel()
    expected = grown(trained, theirs)
    assert ours[0] == pytest.approx(expected[0], rel=1e-5)
    for found, wanted in zip(ours[1], expected[1], strict=True):
        assert wanted.abs().max() > 0
        assert (found - wanted).abs().max() <= 1e-3 * wanted.abs().max()


def test_pefts_prefix_of_an_encoder_decoder_leaves_half_of_it_unused() -> None:
    """Why it is refused: the second of two layers gets what belongs to the first."""
    config = PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3)
    trained: Any = get_peft_model(tiny.model("t5"), config).eval()
    loss = trained(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS), labels=TOKENS[:, :5].contiguous()).loss
    (gradient,) = torch.autograd.grad(loss, list(trainable(trained).values()))
    by_layer = gradient.view(3, 2, -1).abs().amax(dim=(0, 2))
    assert by_layer[0] > 0
    assert by_layer[1] == 0


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_what_is_saved(kind: str, family: str, tmp_path: Path) -> None:
    """Only the vectors are in the file, and they give the logits of the run."""
    base = tiny.folder(tmp_path / "base", family)
    model = AutoModelForCausalLM.from_pretrained(base)
    method = method_of(kind)
    trained = method.apply(model)
    method.save(trained, tmp_path / "saved")
    assert set(tiny.tensors(tmp_path / "saved")) == {"prompt_embeddings"}
    assert json.loads((tmp_path / "saved/adapter_config.json").read_text("utf-8"))["inference_mode"]
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "saved"))
    assert torch.allclose(logits(again), logits(trained), rtol=1e-5, atol=1e-5)
    for ours in (trained, again):
        policy = Policy(model, forest=False, trained=ours)
        assert ancestor_of(ours).length == method.virtual_tokens
        hidden = policy.hidden(plant(plain_rows()), torch.tensor([3]), torch.tensor([0]))
        assert torch.isfinite(hidden).all()


@pytest.mark.parametrize("kind", ["prompt", "p_tuning-mlp", "prefix-mlp", "p_tuning_v2"])
def test_a_score_head_is_saved_with_the_vectors(kind: str, tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    result = tiny.trained(base, tmp_path, "reward", method=dict([KINDS[kind]]), optimizer={"adamw": {"lr": 1e-2}})
    opened = open_model(ModelSpec(path=str(result.folder.path), dtype="float32", device="cpu"), HeadSpec("score"))
    theirs = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    peft = PeftModel.from_pretrained(theirs, str(result.folder.model)).eval()
    batch = tiny.pairs()
    rows = [plant([row]) for row in tiny.single_rows(tiny.pair_rows())]
    with torch.no_grad():
        found = opened.policy().scores(batch)
        expected = [peft(input_ids=row.tokens[None], attention_mask=torch.ones_like(row.tokens[None])) for row in rows]
    assert torch.allclose(found, torch.cat([part.logits[:, 0] for part in expected]), rtol=1e-4, atol=1e-5)
    assert any(name.endswith("score.weight") for name in tiny.tensors(result.folder.model))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("kind", PEFTS)
def test_an_adapter_that_peft_made_is_used_as_peft_uses_it(kind: str, family: str, tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base", family)
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(base), PEFTS[kind]).eval()
    theirs.save_pretrained(str(tmp_path / "adapter"))
    opened = open_model(ModelSpec(path=str(tmp_path / "adapter"), dtype="float32", device="cpu"))
    batch = plant(plain_rows())
    with torch.no_grad():
        ours = next_token_loss(opened.policy(), batch)
        assert ours.item() == pytest.approx(pefts_loss(theirs, batch).item(), rel=1e-5)
        with opened.off():
            bare = next_token_loss(opened.policy(), batch)
        assert torch.equal(bare, opened.policy().reference_logprobs(batch).mul(-batch.targets.weight).sum())
    untouched = Policy(tiny.model(family), forest=False)
    assert bare.item() == pytest.approx(next_token_loss(untouched, batch).item(), rel=1e-5)
    assert bare.item() != pytest.approx(ours.item(), rel=1e-4)


def test_a_kind_of_soft_prompt_that_is_not_computed_here_is_refused(tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    config = CPTConfig(
        task_type="CAUSAL_LM", cpt_token_ids=[3, 4, 5], cpt_mask=[1, 1, 1], cpt_tokens_type_mask=[1, 2, 3]
    )
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(Problem, match="CPT, which is not computed here"):
        open_model(ModelSpec(path=str(tmp_path / "adapter"), dtype="float32", device="cpu"))


@pytest.mark.parametrize("kind", ["prompt", "p_tuning-lstm", "prefix-mlp", "p_tuning_v2"])
class TestAnswers:
    @pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
    def test_one_by_one_they_are_pefts_and_a_batch_has_the_same(self, kind: str, family: str, tmp_path: Path) -> None:
        """PEFT's own batches are no oracle: they put padding between the vectors and the text."""
        opened, trained = self._opened(kind, family, tmp_path)
        answers = Local().bind(trained, opened.codec)
        for sampling in (Sampling(max_tokens=10), Sampling(max_tokens=10, repetition_penalty=1.5)):
            expected = [pefts_answer(trained, opened.codec, ask, sampling) for ask in ASKS]
            assert [next(iter(answers.answer([ask], sampling))).tokens for ask in ASKS] == expected
            assert [answer.tokens for answer in answers.answer(ASKS, sampling)] == expected
        assert len(set(expected)) > 1

    def test_a_stream_is_the_answer(self, kind: str, tmp_path: Path) -> None:
        opened, trained = self._opened(kind, "llama", tmp_path)
        answers = Local().bind(trained, opened.codec)
        sampling = Sampling(max_tokens=12, stop=("e",))
        texts = [answer.text for answer in answers.answer(ASKS, sampling)]
        assert ["".join(answers.stream(ask, sampling)) for ask in ASKS] == texts

    def test_off_is_the_base(self, kind: str, tmp_path: Path) -> None:
        opened, trained = self._opened(kind, "gemma2", tmp_path)
        sampling = Sampling(max_tokens=10)
        bare = open_model(ModelSpec(path=str(tmp_path / "base"), dtype="float32", device="cpu"))
        expected = [answer.tokens for answer in Local().bind(bare.model, bare.codec).answer(ASKS, sampling)]
        method = method_of(kind)
        off = Local().bind(trained, opened.codec, lambda: method.off(trained))
        assert [answer.tokens for answer in off.answer(ASKS, sampling)] == expected
        on = Local().bind(trained, opened.codec)
        assert [answer.tokens for answer in on.answer(ASKS, sampling)] != expected

    @staticmethod
    def _opened(kind: str, family: str, tmp_path: Path) -> tuple[Any, nn.Module]:
        base = tiny.folder(tmp_path / "base", family)
        opened = open_model(ModelSpec(path=str(base), dtype="float32", device="cpu"))
        torch.manual_seed(0)
        return opened, method_of(kind).apply(opened.model).eval()


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("kind", ["prompt", "p_tuning-lstm"])
def test_answers_of_a_decoder_follow_vectors_before_the_encoder(kind: str, family: str, tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base", family)
    opened = open_model(ModelSpec(path=str(base), dtype="float32", device="cpu"))
    trained = method_of(kind).apply(opened.model).eval()
    answers = Local().bind(trained, opened.codec)
    sampling = Sampling(max_tokens=8)
    expected = [next(iter(answers.answer([ask], sampling))).tokens for ask in ASKS]
    assert [answer.tokens for answer in answers.answer(ASKS, sampling)] == expected
    tokens, mask = (part.to(torch.long) for part in _padded_asks(opened.codec))
    with torch.no_grad():
        settings = answers._config(sampling, 8)
        theirs = cast(Any, trained).generate(input_ids=tokens, attention_mask=mask, generation_config=settings)
    for ours, row in zip(expected, theirs[:, 1:].tolist(), strict=True):
        assert tuple(row[: len(ours)]) == ours


def _padded_asks(codec: Any) -> tuple[Tensor, Tensor]:
    """The prompts as PEFT takes them: padded on the right, where its vectors before them leave no gap."""
    answers = [list(codec.encode_framed(ask.text)) for ask in ASKS]
    longest = max(len(row) for row in answers)
    tokens = torch.tensor([row + [codec.pad] * (longest - len(row)) for row in answers])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in answers])
    return tokens, mask


def pefts_answer(trained: Any, codec: Any, ask: Text, sampling: Sampling) -> tuple[int, ...]:
    """One prompt through PEFT's own generate, greedily."""
    tokens: Sequence[int] = [*codec.parts.prefix, *codec.encode_text(ask.text)]
    prompt = torch.tensor([tokens])
    with torch.no_grad():
        out = trained.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=sampling.max_tokens,
            do_sample=False,
            repetition_penalty=sampling.repetition_penalty,
            pad_token_id=codec.pad,
            eos_token_id=sorted(codec.end_tokens),
        )
    return tuple(out[0, len(tokens) :].tolist())


def test_answers_of_a_state_space_begin_with_the_vectors(tmp_path: Path) -> None:
    """Against whole forward passes, one a token: PEFT's generate leaves the vectors out of Mamba's states."""
    model: PreTrainedModel = tiny.model("mamba")
    trained = method_of("prompt").apply(model).eval()
    ancestor = ancestor_of(trained)
    tokens, mask = torch.tensor([[0, 0, 30, 31], [40, 41, 42, 43]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    given = ancestor.prompts(model, tokens, mask)
    found = model.generate(**given, max_new_tokens=6, do_sample=False, eos_token_id=None)[:, -6:]  # type: ignore[operator]
    for row, text in zip(found, ([30, 31], [40, 41, 42, 43]), strict=True):
        so_far = torch.tensor([text])
        for _ in range(6):
            embedded = ancestor.inputs(model, {"input_ids": so_far})
            with torch.no_grad():
                following = model(**embedded, use_cache=False).logits[:, -1:].argmax(-1)
            so_far = torch.cat([so_far, following], dim=1)
        assert so_far[0, len(text) :].tolist() == row.tolist()
