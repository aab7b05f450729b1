"""Encoder-decoders: many rows at once are one row at a time, and both are transformers' own loss, with gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM
from transformers.trainer_pt_utils import LabelSmoother

from tunesmith.core.problem import Problem
from tunesmith.core.rows import Piece, TokenRow
from tunesmith.core.run import ModelSpec
from tunesmith.methods.lora import Lora
from tunesmith.models.encoder_decoder import start_token
from tunesmith.models.load import load
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy
from tunesmith.models.probe import check_head, choose_attention
from tunesmith.objectives import next_token_loss
from tunesmith.objectives.dpo import Dpo
from tunesmith.objectives.seq2seq import Seq2seq
from tunesmith.train.verb import resume, train

Gradients = dict[str, Tensor]
FAMILIES = ["t5", "mt5", "umt5", "bart", "pegasus", "marian"]


def grown(model: nn.Module, loss: Tensor) -> tuple[float, Gradients]:
    """A loss and the gradients that it has with respect to the model's weights."""
    model.zero_grad()
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return loss.item(), found


def assert_same(ours: tuple[float, Gradients], theirs: tuple[float, Gradients], tolerance: float) -> None:
    """Losses and every weight's gradient agree, relative to the largest number of the gradient."""
    assert ours[0] == pytest.approx(theirs[0], rel=tolerance)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in ours[1].items():
        size = theirs[1][name].abs().max().clamp_min(1e-3)
        assert (gradient - theirs[1][name]).abs().max() <= tolerance * size, name


def own_loss(model: Any, row: TokenRow) -> Tensor:
    """The sum of transformers' own losses of a row's answers, each called by itself."""
    tokens = torch.tensor(row.trunk.tokens[None], dtype=torch.long)
    total = torch.zeros((), dtype=model.dtype)
    for branch in row.branches:
        labels = torch.tensor(branch.tokens[None], dtype=torch.long)
        labels[0, branch.weights == 0] = -100
        inputs = model.prepare_decoder_input_ids_from_labels(torch.tensor(branch.tokens[None], dtype=torch.long))
        out = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), decoder_input_ids=inputs, labels=labels)
        total = total + out.loss * (branch.weights > 0).sum()
    return total


@pytest.mark.parametrize("family", tiny.SIDES_FAMILIES)
def test_the_probe_proves_heads_and_sides(family: str) -> None:
    model: Any = tiny.model(family)
    with torch.no_grad():
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    assert check_head(model) < 1e-5
    assert not choose_attention(model, "auto").forest


def test_the_probe_finds_a_head_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("t5")
    model.config.scale_decoder_outputs = False
    own = model.forward

    def scaled(*args: Any, **options: Any) -> Any:
        out = own(*args, **options)
        out.logits = out.logits * 0.5
        return out

    monkeypatch.setattr(model, "forward", scaled)
    assert check_head(model) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_one_row_at_a_time_is_transformers_own_loss(family: str) -> None:
    """In float64, where only formulas can differ; the tolerance is for heads and softmaxes in float32."""
    model = tiny.model(family).double()
    rows = tiny.sides_rows()
    policy = Policy(model, forest=False)
    together = grown(model, next_token_loss(policy, plant(rows)))
    alone = grown(model, sum((next_token_loss(policy, plant([row])) for row in rows), torch.zeros(())))
    assert_same(together, alone, 1e-5)
    assert_same(together, grown(model, sum((own_loss(model, row) for row in rows), torch.zeros(()))), 1e-5)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_in_float32_losses_agree_to_rounding(family: str) -> None:
    model = tiny.model(family)
    rows = tiny.sides_rows()
    with torch.no_grad():
        ours = next_token_loss(Policy(model, forest=False), plant(rows))
        theirs = sum((own_loss(model, row) for row in rows), torch.zeros(()))
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


def test_weights_scale_what_is_learned() -> None:
    model = tiny.model("t5")
    row = tiny.sides_rows()[0]
    half = TokenRow(row.trunk, tuple(Piece(branch.tokens, branch.weights * np.float32(0.5)) for branch in row.branches))
    policy = Policy(model, forest=False)
    with torch.no_grad():
        whole, halved = (float(next_token_loss(policy, plant([each]))) for each in (row, half))
    assert halved == pytest.approx(whole / 2)


def test_a_prompt_is_read_once_and_beside_prompts_of_like_length() -> None:
    """The encoder computes each prompt once for all its answers, and less than twice the tokens that there are."""
    model = tiny.model("t5")
    read: list[torch.Size] = []
    model.get_encoder().register_forward_hook(
        lambda module, args, options, out: read.append(options["input_ids"].shape), with_kwargs=True
    )
    rows = tiny.sides_rows()
    with torch.no_grad():
        Policy(model, forest=False).logprobs(plant(rows))
    assert sum(size[0] for size in read) == len(rows)
    assert sum(size.numel() for size in read) < 2 * sum(len(row.trunk) for row in rows)
    assert 1 < len(read) < len(rows)


def test_what_an_encoder_cannot_learn_is_refused() -> None:
    policy = Policy(tiny.model("t5"), forest=False)
    learned = Piece(np.arange(5, 9, dtype=np.int32), np.ones(4, np.float32))
    with pytest.raises(ValueError, match="nothing of a prompt can be learned"):
        policy.logprobs(plant([TokenRow(learned, (learned,))]))
    with pytest.raises(ValueError, match="without an answer"):
        policy.logprobs(plant([TokenRow(learned)]))


@pytest.mark.parametrize("trained", ["full", "lora"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_is_that_of_transformers(smoothing: float, trained: str) -> None:
    """Through a head that learns and through a frozen one, whose gradients are found in another way."""
    model = tiny.model("t5")
    if trained == "lora":
        Lora(start="gaussian").apply(model)
    row = tiny.sides_rows()[0]
    objective = Seq2seq(label_smoothing=smoothing)
    batch = plant([row])
    loss, _ = objective.loss(Policy(model, forest=False), batch)
    ours = grown(model, loss / objective.count(batch))
    tokens, labels = (torch.tensor(piece.tokens[None], dtype=torch.long) for piece in (row.trunk, row.branches[0]))
    out = model(input_ids=tokens, labels=labels)
    theirs = grown(model, LabelSmoother(smoothing)({"logits": out.logits}, labels))
    assert_same(ours, theirs, 1e-3)


def test_dpo_is_its_formula() -> None:
    """Against log-probabilities that transformers gives each answer, with and without PEFT's adapter."""
    model = tiny.model("t5")
    method = Lora(start="gaussian")
    trained = method.apply(model)
    torch.manual_seed(1)
    for name, weight in trained.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.05)
    rows = [row for row in tiny.sides_rows() if len(row.branches) == 2]
    policy = Policy(model, forest=False, trained=trained, off=lambda: method.off(trained))
    objective = Dpo(beta=0.3)
    batch = objective.prepare(policy, plant(rows))
    ours = grown(trained, objective.loss(policy, batch)[0])

    def gain(row: TokenRow, branch: Piece) -> Tensor:
        one = TokenRow(row.trunk, (branch,))
        with torch.no_grad(), trained.disable_adapter():  # type: ignore[operator]
            base = own_loss(model, one)
        return base - own_loss(model, one)

    leads = torch.stack([gain(row, row.branches[0]) - gain(row, row.branches[1]) for row in rows])
    assert_same(ours, grown(trained, -F.logsigmoid(0.3 * leads).sum()), 1e-3)


@pytest.fixture(scope="module", params=["t5", "bart"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp(request.param), request.param)


def logits(model: nn.Module) -> Tensor:
    tokens = torch.arange(5, 25).reshape(2, 10)
    with torch.no_grad():
        return model.eval()(input_ids=tokens, labels=tokens[:, :4].clone()).logits


def test_a_run_learns_and_plain_transformers_loads_it(base: Path, tmp_path: Path) -> None:
    settings = {"method": "full", "optimizer": {"adamw": {"lr": 1e-2}}, "train": {"epochs": 6, "keep": "last"}}
    result = tiny.trained(base, tmp_path, "seq2seq", **settings)
    losses = tiny.losses(result)
    assert losses[-1] < 0.6 * losses[0]
    plain, info = AutoModelForSeq2SeqLM.from_pretrained(result.folder.model, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ours = load(ModelSpec(path=str(result.folder.path), dtype="float32"))
    assert torch.equal(logits(plain), logits(ours.model))
    assert not torch.equal(logits(plain), logits(AutoModelForSeq2SeqLM.from_pretrained(base)))


def test_sft_is_the_same_run_as_seq2seq(base: Path, tmp_path: Path) -> None:
    found = [tiny.trained(base, tmp_path / name, name, train={"epochs": 1}) for name in ("sft", "seq2seq")]
    assert tiny.losses(found[0]) == tiny.losses(found[1])
    assert tiny.difference(*(tiny.tensors(each.folder.model) for each in found)) == 0


def test_a_run_that_was_stopped_goes_on_bit_for_bit(base: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "method": {"lora": {"dropout": 0.2}},
        "validation": {"fraction": 0.2},
        "train": {"epochs": 3, "tokens_per_batch": 90, "checkpoint_every": 2, "neftune": 5},
    }
    whole = train(tiny.run_of(base, tmp_path / "whole", "seq2seq", **options))

    class Stop(BaseException):
        """A process that dies."""

    def hear(event: Any) -> None:
        if event.kind == "step" and event.step == 5:
            raise Stop

    run = tiny.run_of(base, tmp_path / "cut", "seq2seq", **options)
    with pytest.raises(Stop):
        train(run, hear=hear)
    again = resume(Path(str(run.output)))
    assert tiny.losses(again) == tiny.losses(whole)
    left, right = (load_file(each.folder.model / "adapter_model.safetensors") for each in (whole, again))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_recomputed_activations_are_kept_ones(base: Path, tmp_path: Path) -> None:
    found = [
        tiny.trained(base, tmp_path / each, "seq2seq", train={"epochs": 1, "checkpoint_activations": each})
        for each in ("off", "on")
    ]
    assert tiny.losses(found[0]) == pytest.approx(tiny.losses(found[1]), rel=1e-5)


@pytest.mark.parametrize(
    ("objective", "options", "reason"),
    [
        ("seq2seq", {"model": {"attention": "forest"}}, "an encoder and a decoder takes none"),
        ("pretrain", {}, "an encoder for it, which predicts nothing"),
        ("seq2seq", {"train": {"learn": "all"}}, "reads prompts with an encoder"),
        ("reward", {}, "no head for it that scores an answer"),
        ("seq2seq", {"train": {"max_tokens": 4000}}, "the model's context is 128"),
    ],
)
def test_what_does_not_go_with_an_encoder_is_refused(
    objective: str, options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    base = tiny.folder(tmp_path / "base", "bart")
    with pytest.raises(Problem, match=reason):
        tiny.trained(base, tmp_path, objective, **options)


def test_seq2seq_is_refused_without_an_encoder(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"has a decoder only. Use sft"):
        tiny.trained(tiny.folder(tmp_path / "base"), tmp_path, "seq2seq")


def test_a_model_that_shifts_its_labels_in_another_way_is_refused(tmp_path: Path) -> None:
    """PLBart starts its decoder with the last label, a language code."""
    model = AutoModelForSeq2SeqLM.from_config(tiny.config("plbart", **tiny.SIDES_COMMON, **tiny.BART))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(4)
    folder = tiny.folder(tmp_path / "base", "bart")
    model.save_pretrained(folder)
    with pytest.raises(Problem, match="in a way that is not known here"):
        load(ModelSpec(path=str(folder), dtype="float32"))


def test_the_decoder_starts_with_the_token_that_is_named() -> None:
    assert start_token(tiny.model("bart")) == 4
    assert start_token(tiny.model("t5")) == 0
    nameless = tiny.model("t5")
    for config in (nameless.config, nameless.generation_config):
        config.decoder_start_token_id = config.bos_token_id = None
    with pytest.raises(ValueError, match="decoder_start_token_id"):
        start_token(nameless)
