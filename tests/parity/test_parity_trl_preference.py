"""Losses and gradients of ORPO, CPO, SimPO, KTO and reward models against TRL's trainers, in float32.

TRL has the first three among its experiments. Their likelihood of chosen answers is a mean over the tokens of a whole
micro-batch, ours over each answer's own, as in the papers; so TRL gets the pairs one by one, as with its batch size 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification
from trl_oracle import (
    QUIET,
    adapted,
    assert_same,
    gradients,
    objective_of,
    ours,
    padded,
    plain,
    reference_of,
    trainer_of,
    with_other_reference,
)

from tunesmith.core.rows import TokenRow
from tunesmith.models.attention import NAME
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy

trl = pytest.importorskip("trl")
PAIRS = [{"prompt": "a", "chosen": " b", "rejected": " c"}] * 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base"))


def our_step(options: Any, policy: Policy, *rows: list[TokenRow]) -> tuple[Tensor, dict[str, float]]:
    """The mean loss of a step whose micro-batches are `rows`, and its figures."""
    objective = objective_of(options)
    made = objective.round(policy, [plant(part) for part in rows], seed=0)
    (batches,) = made.groups
    count = sum(objective.count(batch) for batch in batches)
    found = [objective.loss(policy, batch) for batch in batches]
    figures = {name: sum(float(told[name]) for _, told in found) / count for name in found[0][1]}
    return torch.stack([loss for loss, _ in found]).sum() / count, {**figures, **made.figures}


def same_as(trainer: Any, trained: Any, loss: Tensor, theirs: Tensor) -> None:
    loss.backward()
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert_same(gradients(trained), gradients(trainer.accelerator.unwrap_model(trainer.model)))


def pair_inputs(rows: list[TokenRow]) -> dict[str, Tensor]:
    """Pairs as ORPO's and CPO's trainers take them."""
    out: dict[str, Tensor] = {}
    for number, name in enumerate(("chosen", "rejected")):
        paths = [[*row.trunk.tokens.tolist(), *row.branches[number].tokens.tolist()] for row in rows]
        learned = [[-100] * len(row.trunk) + path[len(row.trunk) :] for row, path in zip(rows, paths, strict=True)]
        out[f"{name}_input_ids"] = padded(paths, 0)
        out[f"{name}_attention_mask"] = padded([[1] * len(path) for path in paths], 0)
        out[f"{name}_labels"] = padded(learned, -100)
    return out


def one_by_one(trainer: Any, rows: list[TokenRow]) -> tuple[Tensor, dict[str, float]]:
    """The mean over pairs of TRL's loss, and of its figures."""
    found = [trainer.get_batch_loss_metrics(trainer.model, pair_inputs([row]), "eval") for row in rows]
    names = found[0][1]
    return torch.stack([loss for loss, _ in found]).mean(), {
        name.removeprefix("eval_"): sum(told[name] for _, told in found) / len(rows) for name in names
    }


def orpo_trainer(base: Path, where: Path, lora: bool, **options: Any) -> Any:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    model = adapted(plain(base)) if lora else plain(base)
    return trainer_of(ORPOTrainer, model, ORPOConfig(str(where), **options, **QUIET), PAIRS)


def cpo_trainer(base: Path, where: Path, lora: bool, **options: Any) -> Any:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    model = adapted(plain(base)) if lora else plain(base)
    return trainer_of(CPOTrainer, model, CPOConfig(str(where), **options, **QUIET), PAIRS)


CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"cpo": {}}, {}),
    (
        {"cpo": {"beta": 0.4, "sft_weight": 0.3, "label_smoothing": 0.2}},
        {"beta": 0.4, "cpo_alpha": 0.3, "label_smoothing": 0.2},
    ),
    (
        {"simpo": {"beta": 2.0, "gamma": 0.6}},
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.6, "cpo_alpha": 0.0},
    ),
    (
        {"simpo": {"beta": 1.5, "gamma": 0.6, "sft_weight": 0.7, "label_smoothing": 0.1}},
        {"loss_type": "simpo", "beta": 1.5, "simpo_gamma": 0.6, "cpo_alpha": 0.7, "label_smoothing": 0.1},
    ),
]


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize(("options", "theirs"), CASES, ids=lambda value: str(value)[:60])
def test_cpo_and_simpo(options: Any, theirs: dict[str, Any], lora: bool, base: Path, tmp_path: Path) -> None:
    rows = tiny.pair_rows(5, seed=2)
    policy, trained = ours(base, lora=lora)
    loss, figures = our_step(options, policy, rows)
    oracle = cpo_trainer(base, tmp_path, lora, **theirs)
    found, told = one_by_one(oracle, rows)
    same_as(oracle, trained, loss, found)
    assert figures["accuracy"] == pytest.approx(told["rewards/accuracies"])
    assert figures["chosen"] == pytest.approx(told["rewards/chosen"], rel=1e-5)
    assert figures["lead"] == pytest.approx(told["rewards/margins"], rel=1e-4)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_orpo(beta: float, lora: bool, base: Path, tmp_path: Path) -> None:
    """TRL has the prompt's tokens learned too, so prompts are one token long here, which nothing predicts."""
    rows = [TokenRow(first_token(row), row.branches) for row in tiny.pair_rows(5, seed=2)]
    policy, trained = ours(base, lora=lora)
    loss, figures = our_step({"orpo": {"beta": beta}}, policy, rows)
    oracle = orpo_trainer(base, tmp_path, lora, beta=beta)
    found, told = one_by_one(oracle, rows)
    same_as(oracle, trained, loss, found)
    assert figures["lead"] == pytest.approx(told["log_odds_chosen"], rel=1e-4)
    assert figures["accuracy"] == pytest.approx(told["rewards/accuracies"])


def test_orpos_odds_after_long_prompts(base: Path, tmp_path: Path) -> None:
    """The odds ratio alone, which no prompt's likelihood is part of."""
    rows = tiny.pair_rows(5, seed=2)
    _, figures = our_step({"orpo": {}}, ours(base, lora=True)[0], rows)
    _, told = one_by_one(orpo_trainer(base, tmp_path, True), rows)
    assert figures["lead"] == pytest.approx(told["log_odds_chosen"], rel=1e-4)


def first_token(row: TokenRow) -> Any:
    """The first token of a row's prompt."""
    return type(row.trunk)(row.trunk.tokens[:1], row.trunk.weights[:1])


def rated_inputs(rows: list[TokenRow]) -> dict[str, Tensor]:
    """Rated answers as KTO's trainer takes them, each with its stranger's answer."""
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    return DataCollatorForUnpairedPreference(pad_token_id=0)(
        [
            {
                "prompt_ids": row.trunk.tokens.tolist(),
                "completion_ids": row.branches[0].tokens.tolist(),
                "KL_completion_ids": row.branches[1].tokens.tolist(),
                "label": bool(row.values[0]),
            }
            for row in rows
        ]
    )


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_kto(seed: int, lora: bool, base: Path, tmp_path: Path) -> None:
    """With several seeds the KL is above zero in some cases and clamped in others; ours is of two micro-batches."""
    rows = tiny.rated_rows(6, seed=seed)
    policy, trained = ours(base, lora=lora)
    policy = policy if lora else with_other_reference(policy, base)
    options = {"beta": 0.4, "good_weight": 1.5, "bad_weight": 0.5}
    loss, figures = our_step({"kto": options}, policy, rows[:2], rows[2:])
    args = trl.KTOConfig(
        str(tmp_path),
        beta=0.4,
        desirable_weight=1.5,
        undesirable_weight=0.5,
        per_device_train_batch_size=2,
        **QUIET,
    )
    texts = [{"prompt": "a", "completion": " b", "label": True}, {"prompt": "c", "completion": " d", "label": False}]
    if lora:
        trainer = trainer_of(trl.KTOTrainer, adapted(plain(base)), args, texts)
    else:
        trainer = trainer_of(trl.KTOTrainer, plain(base), args, texts, ref_model=reference_of(base))
    theirs = trainer.compute_loss(trainer.model, rated_inputs(rows))
    same_as(trainer, trained, loss, theirs)
    told = trainer._metrics["eval"]
    assert figures["kl"] == pytest.approx(told["kl"][0], rel=1e-4)
    for name, their in (("good", "chosen"), ("bad", "rejected"), ("lead", "margins")):
        assert figures[name] == pytest.approx(told[f"rewards/{their}"][0], rel=1e-4, abs=4e-6)


def test_the_kl_of_these_seeds_is_clamped_in_some_cases_only(base: Path) -> None:
    policy, _ = ours(base, lora=True)
    kls = [our_step({"kto": {}}, policy, tiny.rated_rows(6, seed=seed))[1]["kl"] for seed in range(4)]
    assert min(kls) == 0 < max(kls)


@pytest.mark.parametrize("options", [{}, {"margin": 0.7}, {"margin": 0.2, "center": 0.3}], ids=str)
def test_reward(options: dict[str, float], tmp_path: Path) -> None:
    from trl.trainer.reward_trainer import DataCollatorForPreference

    base = tiny.folder(tmp_path / "base", head="score")
    rows = tiny.pair_rows(5, seed=2)
    model, their_model = (
        AutoModelForSequenceClassification.from_pretrained(base, attn_implementation="eager", num_labels=1)
        for _ in range(2)
    )
    model.set_attn_implementation(NAME)
    loss, figures = our_step({"reward": options}, Policy(model, forest=True), rows)
    config = trl.RewardConfig(str(tmp_path), center_rewards_coefficient=options.get("center"), **QUIET)
    trainer = trainer_of(trl.RewardTrainer, their_model, config, PAIRS)
    names = ("chosen_ids", "rejected_ids")
    examples = [
        {
            **{
                name: [*row.trunk.tokens.tolist(), *branch.tokens.tolist()]
                for name, branch in zip(names, row.branches, strict=True)
            },
            "margin": options.get("margin", 0.0),
        }
        for row in rows
    ]
    theirs = trainer.compute_loss(trainer.model, DataCollatorForPreference(pad_token_id=0)(examples))
    same_as(trainer, model, loss, theirs)
    told = trainer._metrics["eval"]
    assert figures["accuracy"] == pytest.approx(told["accuracy"][0])
    assert figures["lead"] == pytest.approx(told["margin"][0], rel=1e-4)
