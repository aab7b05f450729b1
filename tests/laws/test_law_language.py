"""Pre-training and supervised tuning: documents stay whole, losses are their formulas, and a base goes on learning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from transformers.trainer_pt_utils import LabelSmoother

from tunesmith.core.plugins import build
from tunesmith.core.problem import Problem
from tunesmith.core.records import Text
from tunesmith.core.run import DataSpec
from tunesmith.data.build import Part, build_store
from tunesmith.data.encode import Rules
from tunesmith.data.pack import account, pack
from tunesmith.data.sources import open_source
from tunesmith.data.stream import Pace, Stream
from tunesmith.data.tokenizer import Codec
from tunesmith.models.forest import Batch
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy
from tunesmith.objectives import Objective

MOST = 512


def test_only_documents_that_do_not_fit_are_split(shared_data: Path, tmp_path: Path) -> None:
    """Real web text: a document of at most `max_tokens` is one row and one segment of one micro-batch."""
    own, file = Codec.load(shared_data / "tokenizer" / "minimind"), shared_data / "text" / "c4_demo.jsonl"
    parts = [Part(source, 0) for source in open_source(DataSpec(path=str(file)))]
    store, _ = build_store(parts, own, Rules(Text, MOST, "split"), tmp_path)
    documents = [own.encode_text(json.loads(line)["text"]) for line in file.read_text("utf-8").splitlines()]
    documents = [[*own.parts.prefix, *ids, *(own.parts.suffix or (own.eos,))] for ids in documents]
    whole = {tuple(ids) for ids in documents if len(ids) <= MOST}
    long = [ids for ids in documents if len(ids) > MOST]
    assert len(whole) > 150
    assert len(long) > 50
    stream = Stream(store.lengths, Pace(tokens=8192))
    steps = [stream.rows_of_step(step) for step in range(stream.steps_per_epoch)]
    batches = [
        plant([store.row(rows[at]) for at in part])
        for rows in steps
        for part in pack([int(store.lengths[number]) for number in rows], 1024)
    ]
    found = [tuple(batch.tokens[s.start : s.stop].tolist()) for batch in batches for s in batch.segments]
    assert whole <= set(found)
    windows = [piece for piece in found if piece not in whole]
    assert len(windows) == sum(-(-(len(ids) - 1) // (MOST - 1)) for ids in long)
    assert max(map(len, found)) <= MOST
    packs = pack([int(length) for length in store.lengths], 1024)
    assert account(packs, store.lengths.tolist(), 1024).fill > 0.98
    learned = sum(len(batch.targets) for batch in batches)
    assert learned == sum(len(ids) - 1 for ids in documents), "every token but the first of a document is learned"


def test_the_base_goes_on_learning_plain_text(shared_data: Path, tmp_path: Path) -> None:
    """Continued pre-training of the embedded base: the loss on held-out text of the domain falls."""
    rows = json.loads((shared_data / "text" / "tinystories_1000.json").read_text("utf-8"))[:60]
    rows = [{"text": row if isinstance(row, str) else next(iter(row.values()))} for row in rows]
    result = tiny.trained(
        Path("builtin:seedling"),
        tmp_path,
        "pretrain",
        rows=rows,
        method="full",
        optimizer={"adamw": {"lr": 1e-3}},
        validation={"fraction": 0.15},
        train={"epochs": 1, "max_tokens": 64, "over_long": "truncate", "rows_per_step": 8, "validate_every": 100},
    )
    validated = [figures["loss"] for figures in tiny.figures(result, "validate")]
    assert validated[-1] < validated[0] - 0.05
    assert result.ended == "done"


def objective_of(value: Any) -> Objective:
    found = build("objective", value)
    assert isinstance(found, Objective)
    return found


def own_logits(row: Any) -> torch.Tensor:
    """The logits that predict each learned token of a plain row, by transformers alone."""
    model = tiny.model()
    logits = model(input_ids=torch.tensor(row.trunk.tokens[None], dtype=torch.long)).logits[0, :-1]
    return logits[torch.from_numpy(row.trunk.weights[1:] > 0)]


@pytest.mark.parametrize("form", [{}, {"label_smoothing": 0.2}, {"form": "dft"}], ids=str)
def test_sft_losses_are_their_formulas(form: dict[str, Any]) -> None:
    row = tiny.binary(tiny.forest_rows()[4])
    objective = objective_of({"sft": form})
    loss, _ = objective.loss(Policy(tiny.model(), forest=False), plant([row]))
    logits, tokens = own_logits(row), torch.from_numpy(row.trunk.tokens[1:][row.trunk.weights[1:] > 0]).long()
    nll = F.cross_entropy(logits, tokens, reduction="none")
    if form.get("form") == "dft":
        expected = (torch.exp(-nll) * nll).sum()
    else:
        labels = tokens[None]
        expected = LabelSmoother(form.get("label_smoothing", 0.0))({"logits": logits[None]}, labels) * len(tokens)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_gradient_of_dft_is_that_of_minus_the_probability() -> None:
    """d(sg(p) log p) = dp: so a step raises the probabilities themselves, not their logarithms."""
    row = tiny.binary(tiny.forest_rows()[4])
    model = tiny.model()
    policy = Policy(model, forest=False)
    loss, _ = objective_of({"sft": {"form": "dft"}}).loss(policy, plant([row]))
    loss.backward()
    ours = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    (-policy.logprobs(plant([row])).exp().sum()).backward()
    assert ours
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        assert torch.allclose(ours[name], weight.grad, rtol=1e-3, atol=1e-5), name


def test_dft_is_measured_by_the_likelihood(tmp_path: Path) -> None:
    """p log p is near zero where a model has everything wrong, so it cannot say which weights are best."""
    base = tiny.folder(tmp_path / "base")
    options: dict[str, Any] = {"validation": {"fraction": 0.3}, "train": {"epochs": 1}}
    found = [
        tiny.figures(tiny.trained(base, tmp_path / str(number), {"sft": form}, **options), "validate")[0]
        for number, form in enumerate(({}, {"form": "dft"}))
    ]
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], rel=1e-6)


def test_smoothing_without_effect_is_refused() -> None:
    with pytest.raises(Problem, match="the form dft has no such term"):
        build("objective", {"sft": {"form": "dft", "label_smoothing": 0.1}})


@pytest.mark.parametrize("form", [{"label_smoothing": 0.1}, {"form": "dft"}], ids=str)
def test_sums_and_counts_of_sft(form: dict[str, Any]) -> None:
    objective, policy, rows = objective_of({"sft": form}), Policy(tiny.model(), forest=False), tiny.forest_rows()

    def total(batch: Batch) -> float:
        with torch.no_grad():
            return float(objective.loss(policy, batch)[0])

    assert total(plant(rows)) == pytest.approx(sum(total(plant([row])) for row in rows), rel=1e-5)
    assert objective.count(plant(rows)) == pytest.approx(sum(objective.count(plant([row])) for row in rows))
