"""Labels and numbers against transformers: its own losses, and its own loading of what is saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import AutoPeftModelForSequenceClassification, AutoPeftModelForTokenClassification
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)

from tunesmith.core.plugins import build
from tunesmith.core.records import Labelled, Tagged
from tunesmith.core.rows import TokenRow
from tunesmith.core.run import ModelSpec
from tunesmith.data.encode import Rules, encode
from tunesmith.generate.opened import open_model
from tunesmith.merge.fold import fold
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy
from tunesmith.models.probe import choose_attention
from tunesmith.models.source import find, head_of
from tunesmith.objectives import Objective

LABELS = ["bad", "good", "odd"]
OBJECTIVES: dict[str, dict[str, Any]] = {
    "one": {"classify": {"labels": LABELS}},
    "several": {"classify": {"labels": LABELS, "per_text": "several"}},
    "regress": {"regress": {}},
    "tag": {"tag": {"labels": LABELS}},
}
FAMILIES = ("llama", "qwen3", "gpt2", "bert", "roberta", "distilbert")
TEXTS = [row["text"] for row in tiny.JUDGED[:5]]
WORDS = [tuple(row["tokens"]) for row in tiny.TAGGED[:5]]
AUTO = {"score": AutoModelForSequenceClassification, "tags": AutoModelForTokenClassification}
AUTO_PEFT = {"score": AutoPeftModelForSequenceClassification, "tags": AutoPeftModelForTokenClassification}


def objective_of(case: str) -> Objective:
    found = build("objective", OBJECTIVES[case])
    assert isinstance(found, Objective)
    return found


def rows_of(case: str, entries: int) -> list[TokenRow]:
    if case == "tag":
        return tiny.tagged_rows(3, entries=entries)
    return tiny.labelled_rows(0 if case == "regress" else 3, 3 if case == "several" else 1, entries=entries)


def own_loss(model: nn.Module, rows: list[TokenRow], case: str) -> Tensor:
    """What transformers makes of the rows, padded on the right, with their labels."""
    longest = max(len(row) for row in rows)
    tokens = torch.full((len(rows), longest), model.config.pad_token_id)
    marked = torch.full((len(rows), longest), -100)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.from_numpy(row.trunk.tokens)
        marked[number, list(row.marks)] = torch.tensor(row.values[: len(row.marks)]).long()
    mask = (torch.arange(longest) < torch.tensor([[len(row)] for row in rows])).long()
    values = torch.tensor([row.values for row in rows]) if case != "tag" else marked
    labels = {"one": lambda: values[:, 0].long(), "regress": lambda: values[:, 0]}.get(case, lambda: values)()
    return model(input_ids=tokens, attention_mask=mask, labels=labels).loss


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("case", OBJECTIVES)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_transformers_own(family: str, case: str) -> None:
    objective = objective_of(case)
    rows = rows_of(case, tiny.vocabulary(family))
    ours, theirs = (tiny.model(family, head=objective.head) for _ in range(2))
    verdict = choose_attention(ours, "auto")
    assert verdict.forest == (family in tiny.FAMILIES)
    batch = plant(rows)
    loss = objective.loss(Policy(ours, forest=verdict.forest), batch)[0] / objective.count(batch)
    expected = own_loss(theirs, rows, case)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    found, wanted = gradients(ours, loss), gradients(theirs, expected)
    assert found.keys() == wanted.keys()
    size = max(float(value.abs().max()) for value in wanted.values())
    assert tiny.difference(found, wanted) < 1e-5 * size


def rules_of(head: Any) -> Rules:
    return Rules(Tagged if head.kind == "tags" else Labelled)


def own_scores(folder: Path) -> list[Tensor]:
    """What the saved result gives each text [1, C], or the words of each [K, C], opened by tunesmith."""
    head = head_of(find(str(folder)))
    opened = open_model(ModelSpec(path=str(folder), dtype="float32", device="cpu"), head)
    policy, out = opened.policy(), []
    for text, words in zip(TEXTS, WORDS, strict=True):
        record = Tagged(words, ("",) * len(words)) if head.kind == "tags" else Labelled(text, ())
        (row,) = encode(record, opened.codec, rules_of(head))
        batch = plant([row])
        with torch.no_grad():
            out.append(policy.tag_scores(batch) if head.kind == "tags" else policy.class_scores(batch))
    return out


def piped(model: Any, folder: Path, kind: str) -> list[Tensor]:
    """The same through transformers' pipelines, several texts at once, as probabilities by label name."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = [model.config.id2label[number] for number in range(model.config.num_labels)]
    if kind == "score":
        run = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
        found = run(TEXTS, top_k=None, batch_size=3)
        return [torch.tensor([[{e["label"]: e["score"] for e in one}[name] for name in names]]) for one in found]
    inputs = tokenizer([" ".join(words) for words in WORDS], padding=True, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        return list(model(**{name: inputs[name] for name in ("input_ids", "attention_mask")}).logits.softmax(dim=-1))


def check_same(folder: Path, model: Any, tokenizer: Path, case: str) -> None:
    kind = "tags" if case == "tag" else "score"
    ours, theirs = own_scores(folder), piped(model.eval(), tokenizer, kind)
    for number, (found, other) in enumerate(zip(ours, theirs, strict=True)):
        shares = {"several": found.sigmoid(), "regress": found}.get(case, found.softmax(dim=-1))
        if kind == "tags":
            head = head_of(find(str(folder)))
            codec = open_model(ModelSpec(path=str(folder), device="cpu"), head).codec
            (row,) = encode(Tagged(WORDS[number], ("",) * len(WORDS[number])), codec, rules_of(head))
            other = other[list(row.marks)]
        torch.testing.assert_close(shares, other, atol=2e-5, rtol=1e-4)


ROWS = {"several": tiny.SEVERAL}
SAVED = [("llama", "one"), ("gpt2", "several"), ("bert", "one"), ("roberta", "regress"), ("llama", "tag")]
SAVED += [("gpt2", "tag"), ("bert", "tag"), ("distilbert", "one")]


def trained(family: str, case: str, where: Path, method: str) -> Path:
    changes = {"pad_token_id": None} if family == "gpt2" else {}
    base = tiny.folder(where / "base", family, head="lm" if family in tiny.FAMILIES else "states", **changes)
    (name,) = OBJECTIVES[case]
    objective = {name: {"per_text": "several"} if case == "several" else {}}
    options = {"method": method, "optimizer": {"adamw": {"lr": 5e-3}}, "rows": ROWS.get(case)}
    return tiny.trained(base, where, objective, **options).folder.path


@pytest.mark.parametrize(("family", "case"), SAVED)
def test_a_saved_model_is_transformers_own(family: str, case: str, tmp_path: Path) -> None:
    folder = trained(family, case, tmp_path, "full")
    kind = "tags" if case == "tag" else "score"
    model = AUTO[kind].from_pretrained(folder / "model")
    known = {"one": LABELS, "several": ["big", "red"], "tag": ["B-LOC", "B-PER", "I-PER", "O"], "regress": ["LABEL_0"]}
    assert list(model.config.id2label.values()) == known[case]
    assert head_of(find(str(folder))).labels == tuple(known[case] if case != "regress" else ())
    check_same(folder, model, folder / "model", case)


@pytest.mark.parametrize(("family", "case"), [("llama", "one"), ("gpt2", "tag"), ("bert", "one"), ("bert", "tag")])
def test_an_adapter_is_peft_s_and_folds(family: str, case: str, tmp_path: Path) -> None:
    folder = trained(family, case, tmp_path, "lora")
    kind = "tags" if case == "tag" else "score"
    head = json.loads((folder / "model" / "head.json").read_text())
    head["id2label"] = dict(enumerate(head["id2label"].values()))  # keys of JSON are strings
    adapted = AUTO_PEFT[kind].from_pretrained(folder / "model", **head)
    check_same(folder, adapted.eval().merge_and_unload(), folder / "model", case)
    folded = fold(str(folder)).folder
    model = AUTO[kind].from_pretrained(folded)
    assert list(model.config.id2label.values()) == list(head["id2label"].values())
    check_same(folder, model, folded, case)
    check_same(folded, model, folded, case)
