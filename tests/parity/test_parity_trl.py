"""Losses and gradients of SFT and DPO against TRL's trainers: the same weights, the same tokens, float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from made_codecs import oracle
from trl_oracle import (
    QUIET,
    adapted,
    assert_same,
    changed,
    gradients,
    objective_of,
    ours,
    plain,
    reference_of,
    trainer_of,
    with_other_reference,
)

from tunesmith.core.rows import TokenRow
from tunesmith.models.planting import plant

trl = pytest.importorskip("trl")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base"))


def texts(rows: list[TokenRow]) -> list[dict[str, list[int]]]:
    """Rows as TRL takes tokens: ids, and which of them are learned."""
    return [
        {"input_ids": row.trunk.tokens.tolist(), "completion_mask": [int(w > 0) for w in row.trunk.weights]}
        for row in rows
    ]


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_sft(lora: bool, base: Path, tmp_path: Path) -> None:
    rows = [tiny.binary(row) for seed in range(3) for row in tiny.forest_rows(seed=seed) if not row.branches]
    policy, trained = ours(base, lora=lora)
    objective = objective_of("sft")
    batch = plant(rows)
    loss, _ = objective.loss(policy, batch)
    loss = loss / objective.count(batch)
    loss.backward()
    from datasets import Dataset

    model = changed(adapted(plain(base))) if lora else plain(base)
    config = trl.SFTConfig(str(tmp_path), completion_only_loss=True, per_device_train_batch_size=len(rows), **QUIET)
    trainer = trl.SFTTrainer(model, config, train_dataset=Dataset.from_list(texts(rows)), processing_class=oracle())
    inputs = next(iter(trainer.get_train_dataloader()))
    assert int((inputs["labels"][:, 1:] != -100).sum()) == objective.count(batch)
    trainer.model.eval()
    theirs = trainer.compute_loss(trainer.model, inputs)
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert_same(gradients(trained), gradients(trainer.accelerator.unwrap_model(trainer.model)))


DPO: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"beta": 0.1}, {"beta": 0.1}),
    ({"beta": 0.7}, {"beta": 0.7}),
    ({"beta": 0.7, "normalise": "length"}, {"beta": 0.7, "loss_type": "sigmoid_norm"}),
    ({"beta": 0.4, "form": "hinge"}, {"beta": 0.4, "loss_type": "hinge"}),
    ({"beta": 0.4, "form": "ipo"}, {"beta": 0.4, "loss_type": "ipo"}),
    (
        {"beta": 0.4, "form": "robust", "label_smoothing": 0.2},
        {"beta": 0.4, "loss_type": "robust", "label_smoothing": 0.2},
    ),
]
"""Options of ours, and of TRL."""


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize(("options", "theirs"), DPO, ids=lambda value: "-".join(map(str, value.values())))
def test_dpo(options: dict[str, Any], theirs: dict[str, Any], lora: bool, base: Path, tmp_path: Path) -> None:
    rows = tiny.pair_rows(5, seed=2)
    policy, trained = ours(base, lora=lora)
    loss, figures = our_loss({"dpo": options}, policy if lora else with_other_reference(policy, base), rows)
    loss.backward()
    trainer = dpo_trainer(base, tmp_path, lora, **theirs)
    found = trainer.compute_loss(trainer.model, dpo_inputs(rows))
    found.backward()
    assert abs(loss.item() - 0.6931) > 1e-3
    assert loss.item() == pytest.approx(found.item(), rel=1e-5)
    assert_same(gradients(trained), gradients(trainer.accelerator.unwrap_model(trainer.model)))
    told = trainer._metrics["eval"]
    assert figures["chosen_logprob"] == pytest.approx(told["logps/chosen"][0], rel=1e-5)
    if "normalise" not in options and options.get("form") != "ipo":
        assert figures["accuracy"] == pytest.approx(told["rewards/accuracies"][0])
        for name, their in (
            ("chosen", "rewards/chosen"),
            ("rejected", "rewards/rejected"),
            ("lead", "rewards/margins"),
        ):
            assert figures[name] == pytest.approx(told[their][0], rel=1e-3, abs=1e-5)


def test_conservative_dpo_is_trl_on_pairs_that_are_partly_swapped(base: Path, tmp_path: Path) -> None:
    """TRL's own sigmoid loss leaves label smoothing out, so it is asked twice: as given, and the wrong way round."""
    rows = tiny.pair_rows(5, seed=2)
    policy, trained = ours(base, lora=True)
    loss, _ = our_loss({"dpo": {"beta": 0.7, "label_smoothing": 0.3}}, policy, rows)
    loss.backward()
    trainer = dpo_trainer(base, tmp_path, True, beta=0.7)
    swapped = [TokenRow(row.trunk, row.branches[::-1]) for row in rows]
    right, wrong = (trainer.compute_loss(trainer.model, dpo_inputs(given)) for given in (rows, swapped))
    found = 0.7 * right + 0.3 * wrong
    found.backward()
    assert loss.item() == pytest.approx(found.item(), rel=1e-5)
    assert_same(gradients(trained), gradients(trainer.accelerator.unwrap_model(trainer.model)))


def test_dpo_beside_the_likelihood_of_chosen_answers(base: Path, tmp_path: Path) -> None:
    """TRL takes the mean over the tokens of a micro-batch, ours each answer's own, so pairs are given one by one."""
    rows = tiny.pair_rows(4, seed=2)
    policy, trained = ours(base, lora=True)
    loss, _ = our_loss({"dpo": {"beta": 0.7, "sft_weight": 0.4}}, policy, rows)
    loss.backward()
    trainer = dpo_trainer(base, tmp_path, True, beta=0.7, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.4])
    found = torch.stack([trainer.compute_loss(trainer.model, dpo_inputs([row])) for row in rows]).mean()
    found.backward()
    assert loss.item() == pytest.approx(found.item(), rel=1e-5)
    assert_same(gradients(trained), gradients(trainer.accelerator.unwrap_model(trainer.model)))


def our_loss(options: Any, policy: Any, rows: list[TokenRow]) -> tuple[Any, dict[str, float]]:
    """The mean loss and figures over a batch."""
    objective = objective_of(options)
    batch = objective.prepare(policy, plant(rows))
    loss, figures = objective.loss(policy, batch)
    count = objective.count(batch)
    return loss / count, {name: float(value) / count for name, value in figures.items()}


def dpo_inputs(rows: list[TokenRow]) -> Any:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    names = ("chosen_ids", "rejected_ids")
    answers = [dict(zip(names, (branch.tokens.tolist() for branch in row.branches), strict=True)) for row in rows]
    examples = [{"prompt_ids": row.trunk.tokens.tolist(), **pair} for row, pair in zip(rows, answers, strict=True)]
    return DataCollatorForPreference(pad_token_id=0)(examples)


def dpo_trainer(base: Path, where: Path, lora: bool, **options: Any) -> Any:
    rows = [{"prompt": "a", "chosen": " b", "rejected": " c"}] * 2
    args = trl.DPOConfig(str(where), **options, **QUIET)
    if lora:
        return trainer_of(trl.DPOTrainer, adapted(plain(base)), args, rows)
    return trainer_of(trl.DPOTrainer, plain(base), args, rows, ref_model=reference_of(base))
