"""Losses, gradients and steps against plain transformers + PEFT, on real rows and on our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tunesmith.core.run import Run
from tunesmith.methods import trainable
from tunesmith.train.setup import Inputs, Ready, build, gather
from tunesmith.train.verb import train

LORA = {"lora": {"start": "gaussian", "rank": 4, "alpha": 8}}
REAL = 12
"""Real rows of a step, in micro-batches of some hundred tokens."""


@pytest.fixture(scope="module")
def real(shared_data: Path) -> list[dict[str, Any]]:
    """Real rows of uneven lengths, with inputs and without."""
    file = shared_data / "sft" / "rasbt_instructions_1100.json"
    if not file.is_file():
        pytest.skip("the instruction rows are not in the shared data")
    rows = [row for row in json.loads(file.read_text("utf-8")) if len(row["instruction"] + row["output"]) < 240]
    return rows[:REAL]


def one_step(base: Path, where: Path, rows: list[dict[str, Any]], **options: Any) -> Run:
    settings = {"rows_per_step": len(rows), "epochs": 1, "tokens_per_batch": 700, **options.pop("train", {})}
    return tiny.run_of(base, where, "sft", rows=rows, train=settings, **options)


def made(run: Run) -> tuple[Inputs, Ready]:
    inputs = gather(run, Path(), lambda event: None)
    return inputs, build(inputs, None, lambda event: None)


def labelled(base: Path, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The rows as anyone would prepare them with transformers: padded, prompts and padding masked with -100."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids, labels = [], []
    for row in rows:
        content = f"{row['instruction']}\n{row['input']}" if row.get("input") else row["instruction"]
        chat = [{"role": "user", "content": content}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer = tokenizer(row["output"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
        ids.append([*start, *answer])
        labels.append([-100] * len(start) + answer)
    longest = max(map(len, ids))
    return {
        "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in ids]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids]),
        "labels": torch.tensor([row + [-100] * (longest - len(row)) for row in labels]),
    }


def plain_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy summed over labels and divided by their number."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["labels"][:, 1:]
    total = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    return total / (labels != -100).sum()


def twin(base: Path, ready: Ready, lora: bool) -> nn.Module:
    """Plain transformers, and PEFT over it, with the same weights as ours."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    if lora:
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
    missing, unknown = model.load_state_dict(ready.trained.state_dict(), strict=False)
    assert not missing
    assert not unknown
    return model


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in trainable(model).items() if weight.grad is not None}


def our_step(ready: Ready, inputs: Inputs) -> float:
    """Loss and gradients of the first step, as the loop computes them."""
    batches = ready.steps.batches(0)
    assert len(batches) > 1
    count = sum(inputs.objective.count(batch) for batch in batches)
    total = 0.0
    for batch in batches:
        loss, _ = inputs.objective.loss(ready.policy, batch)
        (loss / count).backward()
        total += loss.item() / count
    return total


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3"])
@pytest.mark.parametrize("method", [LORA, "full"], ids=["lora", "full"])
def test_loss_and_gradients_of_a_step(family: str, method: Any, real: list[dict[str, Any]], tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base", family)
    inputs, ready = made(one_step(base, tmp_path, real, method=method))
    ours = our_step(ready, inputs)
    theirs = twin(base, ready, lora=method is LORA).eval()
    loss = plain_loss(theirs, labelled(base, real))
    loss.backward()
    assert ours == pytest.approx(loss.item(), rel=1e-5)
    found, expected = gradients(ready.trained), gradients(theirs)
    if method == "full":
        expected = {name: value for name, value in expected.items() if name in found}
    assert found.keys() == expected.keys()
    for name, value in found.items():
        size = expected[name].abs().max().clamp_min(1e-4)
        assert (value - expected[name]).abs().max() <= 2e-4 * size, name


def test_several_steps_are_those_of_a_plain_loop(real: list[dict[str, Any]], tmp_path: Path) -> None:
    """AdamW, clipping and a linear schedule written out with torch alone."""
    base = tiny.folder(tmp_path / "base")
    settings = {"epochs": 4, "schedule": "linear", "clip_norm": 0.7}
    options: dict[str, Any] = {"method": LORA, "optimizer": {"adamw": {"lr": 2e-3, "weight_decay": 0.01}}}
    run = one_step(base, tmp_path, real, train=settings, **options)
    _, ready = made(run)
    theirs = twin(base, ready, lora=True).train()
    result = train(run)
    batch = labelled(base, real)
    weights = [weight for weight in theirs.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 4)
    expected = []
    for _ in range(4):
        loss = plain_loss(theirs, batch)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, 0.7)
        optimizer.step()
        schedule.step()
        expected.append((loss.item(), float(norm)))
    told = [(figure["loss"], figure["grad_norm"]) for figure in tiny.figures(result)]
    assert len(told) == 4
    for ours, wanted in zip(told, expected, strict=True):
        assert ours == pytest.approx(wanted, rel=2e-4)
    final = {name.replace(".default", ""): value.detach() for name, value in trainable(theirs).items()}
    assert tiny.difference(tiny.tensors(result.folder.model), final) < 2e-5


@pytest.mark.parametrize("form", ["plain", "dora"])
def test_an_adapter_of_a_run_is_peft_s(form: str, tmp_path: Path) -> None:
    """It loads with PEFT alone and computes what the run's own model computed."""
    base = tiny.folder(tmp_path / "base")
    settings: dict[str, Any] = {"method": {"lora": {"form": form}}, "optimizer": {"adamw": {"lr": 1e-2}}}
    result = tiny.trained(base, tmp_path, **settings, validation={"fraction": 0.3}, train={"keep": "last"})
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(result.folder.model)).eval()
    assert AutoTokenizer.from_pretrained(result.folder.model).chat_template
    inputs, ready = made(tiny.run_of(base, tmp_path, **settings, validation={"fraction": 0.3}, output="again"))
    rows = [inputs.prepared.validation.row(number) for number in range(len(inputs.prepared.validation))]
    told = tiny.figures(result, "validate")[-1]["loss"]
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            tokens = torch.tensor(row.trunk.tokens.tolist())
            learned = torch.from_numpy(row.trunk.weights)[1:] > 0
            logprobs = theirs(input_ids=tokens[None]).logits[0, :-1].log_softmax(-1)
            total -= float(logprobs.gather(-1, tokens[1:, None])[:, 0][learned].sum())
            count += int(learned.sum())
    assert told == pytest.approx(total / count, rel=1e-5)
    assert ready.policy.forest


@pytest.mark.parametrize("method", ["lora", "full", {"freeze": {"last": 1}}])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_reward_model_is_transformers_own(method: Any, family: str, tmp_path: Path) -> None:
    """It loads as a sequence classifier (with PEFT, or as it is) and gives the scores that the run told of."""
    base = tiny.folder(tmp_path / "base", family)
    options: dict[str, Any] = {"method": method, "optimizer": {"adamw": {"lr": 3e-3}}, "validation": {"fraction": 0.3}}
    result = tiny.trained(base, tmp_path, "reward", **options, train={"keep": "last"})
    saved = result.folder.model
    if method == "lora":
        plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        theirs: Any = PeftModel.from_pretrained(plain, str(saved))
    else:
        theirs = AutoModelForSequenceClassification.from_pretrained(saved)
        assert theirs.config.num_labels == 1
    theirs.eval()
    inputs = gather(tiny.run_of(base, tmp_path, "reward", **options, output="again"), Path(), lambda event: None)
    held_out = inputs.prepared.validation
    assert len(held_out) > 1
    leads = []
    for number in range(len(held_out)):
        row = held_out.row(number)
        tokens = [torch.tensor([[*row.trunk.tokens.tolist(), *branch.tokens.tolist()]]) for branch in row.branches]
        with torch.no_grad():
            chosen, rejected = (theirs(input_ids=answer).logits[0, 0].item() for answer in tokens)
        leads.append(chosen - rejected)
    told = tiny.figures(result, "validate")[-1]
    assert told["lead"] == pytest.approx(sum(leads) / len(leads), rel=1e-3, abs=1e-5)
    assert told["accuracy"] == sum(lead > 0 for lead in leads) / len(leads)
