"""Objectives over pairs and rated answers: what is refused, what is known in closed form, what goes with their rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from tunesmith.core.plugins import build
from tunesmith.core.problem import Problem
from tunesmith.core.records import Place
from tunesmith.core.rows import Piece, TokenRow
from tunesmith.data.store import TokenStore, block_of, content_key
from tunesmith.data.strangers import strangers
from tunesmith.methods.lora import Lora
from tunesmith.models.attention import NAME
from tunesmith.models.forest import Batch, by_row, keep
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy
from tunesmith.objectives import Objective
from tunesmith.objectives.bco import MEAN, SEEN
from tunesmith.objectives.orpo import log_odds
from tunesmith.train.steps import Side


def objective_of(value: Any) -> Objective:
    found = build("objective", value)
    assert isinstance(found, Objective)
    return found


def policy_of(std: float = 0.05, seed: int = 0) -> Policy:
    """A tiny model under LoRA whose change has a size."""
    model = tiny.model(seed=seed)
    method = Lora(start="gaussian", dropout=0.0)
    trained = method.apply(model)
    torch.manual_seed(seed)
    for name, weight in trained.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=std) if std else nn.init.zeros_(weight)
    return Policy(model, forest=False, trained=trained, off=lambda: method.off(trained))


def step(objective: Objective, policy: Policy, *rows: list[TokenRow]) -> tuple[float, dict[str, float]]:
    """The mean loss and the figures of a step."""
    made = objective.round(policy, [plant(part) for part in rows], seed=0)
    (batches,) = made.groups
    count = sum(objective.count(batch) for batch in batches)
    found = [objective.loss(policy, batch) for batch in batches]
    names = found[0][1]
    figures = {name: sum(float(told.get(name, 0)) for _, told in found) / count for name in names}
    return sum(loss.item() for loss, _ in found) / count, {**figures, **made.figures}


def store_of(rows: list[TokenRow], keys: list[int] | None = None) -> TokenStore:
    """Rows as a store, in memory."""
    keys = [content_key([row]) % 2**63 for row in rows] if keys is None else keys
    block = block_of([(row, Place("rows"), 0, key) for row, key in zip(rows, keys, strict=True)])
    return TokenStore(dict(block.tables), ["rows"])


def rated(prompt: int, answer: list[int], good: bool = True) -> TokenRow:
    """A row whose prompt is one number, three times."""
    trunk = Piece(np.full(3, prompt, np.int32), np.zeros(3, np.float32))
    branch = Piece(np.array(answer, np.int32), np.ones(len(answer), np.float32))
    return TokenRow(trunk, (branch,), values=(float(good),))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"form": "ipo", "label_smoothing": 0.1}, "the form ipo has no such term"),
        ({"form": "hinge", "label_smoothing": 0.1}, "the form hinge has no such term"),
        ({"form": "robust"}, "robust is sigmoid"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
        ({"beta": 0}, "greater than 0"),
    ],
)
def test_options_of_dpo_without_effect_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(Problem, match=says):
        build("objective", {"dpo": options})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"form": "sigmoid"}, math.log(2)),
        ({"form": "sigmoid", "label_smoothing": 0.3}, math.log(2)),
        ({"form": "robust", "label_smoothing": 0.3}, math.log(2)),
        ({"form": "hinge"}, 1.0),
        ({"form": "ipo", "beta": 0.25}, 4.0),
    ],
)
def test_where_dpo_starts(options: dict[str, Any], expected: float) -> None:
    loss, figures = step(objective_of({"dpo": options}), policy_of(0), tiny.pair_rows(4))
    assert loss == pytest.approx(expected, abs=1e-5)
    assert figures["lead"] == pytest.approx(0, abs=1e-5)
    assert figures["chosen_logprob"] < -1


def test_where_kto_and_bco_start() -> None:
    rows = tiny.rated_rows(5)
    assert step(objective_of("kto"), policy_of(0), rows)[0] == pytest.approx(0.5, abs=1e-6)
    assert step(objective_of("bco"), policy_of(0), rows)[0] == pytest.approx(math.log(2), abs=1e-6)


def test_ipo_of_whole_answers_is_the_papers_own_formula() -> None:
    policy, rows = policy_of(), tiny.pair_rows(4)
    loss, _ = step(objective_of({"dpo": {"form": "ipo", "beta": 0.3, "normalise": "none"}}), policy, rows)
    gained = logratios(policy, plant(rows))
    assert loss == pytest.approx(np.mean((gained[0::2] - gained[1::2] - 1 / 0.6) ** 2), rel=1e-4)


def logratios(policy: Policy, batch: Batch) -> np.ndarray:
    """log p - log p_ref of each answer."""
    with torch.no_grad():
        return by_row(batch, policy.logprobs(batch) - policy.reference_logprobs(batch)).double().numpy()


def test_odds_are_numbers_from_certain_to_impossible() -> None:
    logprobs = torch.tensor([0.0, -1e-7, -1e-3, -0.6931472, -5.0, -200.0], requires_grad=True)
    odds = log_odds(logprobs)
    odds.sum().backward()
    assert odds.isfinite().all()
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()
    assert odds[3].item() == pytest.approx(0, abs=1e-5)
    assert odds[2].item() == pytest.approx(math.log(math.exp(-1e-3) / -math.expm1(-1e-3)), rel=1e-5)
    assert odds[5].item() == pytest.approx(-200)
    assert (odds.detach().diff() < 0)[1:].all()


def test_ktos_kl_leaves_out_rows_without_a_stranger() -> None:
    policy, rows = policy_of(), tiny.rated_rows(4, seed=1)
    single = [TokenRow(rows[3].trunk, rows[3].branches[:1], values=rows[3].values[:1])]
    _, figures = step(objective_of("kto"), policy, [*rows[:3], *single])
    gained = logratios(policy, plant(rows[:3]))[1::2]
    assert figures["kl"] == pytest.approx(max(0.0, gained.mean()), rel=1e-4)
    assert step(objective_of("kto"), policy, single)[1]["kl"] == 0


def test_bco_is_its_formula_with_the_mean_of_all_rewards_so_far() -> None:
    policy, objective = policy_of(), objective_of({"bco": {"beta": 0.5}})
    policy.trained.train()
    mean, seen = 0.0, 0
    for seed in (1, 2):
        rows = [TokenRow(r.trunk, r.branches[:1], values=r.values[:1]) for r in tiny.rated_rows(3 + seed, seed)]
        loss, figures = step(objective, policy, rows[:2], rows[2:])
        rewards = 0.5 * logratios(policy, plant(rows))
        mean = (mean * seen + rewards.sum()) / (seen + len(rows))
        seen += len(rows)
        good = np.array([row.values[0] > 0 for row in rows])
        logits = np.where(good, rewards - mean, mean - rewards)
        assert loss == pytest.approx(np.mean(np.log1p(np.exp(-logits))), rel=1e-4)
        assert figures["delta"] == pytest.approx(mean, rel=1e-4)
        assert figures["good"] == pytest.approx(rewards[good].mean(), rel=1e-4)
        assert figures["bad"] == pytest.approx(rewards[~good].mean(), rel=1e-4)
        assert figures["accuracy"] == pytest.approx(np.mean(logits > 0))
    assert policy.carried == {MEAN: pytest.approx(mean, rel=1e-4), SEEN: 4 + 5}


def test_validation_does_not_move_bcos_mean() -> None:
    policy, objective = policy_of(), objective_of("bco")
    with torch.no_grad(), policy.still():
        sums, count = objective.measure(policy, [plant(tiny.rated_rows(3))], lambda b: objective.loss(policy, b))
    assert policy.carried == {}
    assert count > 0
    assert sums["loss"] > 0


def test_means_of_a_kind_that_a_step_does_not_have_are_left_out() -> None:
    rows = [row for row in tiny.rated_rows(6) if row.values[0] == 1]
    _, figures = step(objective_of("kto"), policy_of(), rows)
    assert "good" not in figures
    assert "accuracy" in figures


class TestStrangers:
    def test_each_has_another_prompt_whatever_the_order_of_rows(self) -> None:
        rows = [rated(prompt, [5, 6, number]) for number, prompt in enumerate((7, 7, 8, 9, 7, 8))]
        found = strangers(store_of(rows))
        other = [rows[number] for number in found]
        assert all(a.trunk.tokens[0] != b.trunk.tokens[0] for a, b in zip(rows, other, strict=True))
        moved = [3, 0, 5, 1, 4, 2]
        again = strangers(store_of([rows[number] for number in moved]))
        assert [moved[number] for number in again] == [found[number] for number in moved]

    def test_a_ring_that_begins_and_ends_with_the_same_prompt(self) -> None:
        rows = [rated(prompt, [5, number]) for number, prompt in enumerate((7, 7, 8, 7))]
        assert strangers(store_of(rows, keys=[1, 2, 3, 4])).tolist() == [2, 2, 3, 2]

    def test_there_is_none_where_all_prompts_are_the_same(self) -> None:
        assert strangers(store_of([rated(7, [5, number]) for number in range(3)])).tolist() == [-1, -1, -1]
        assert strangers(store_of([rated(7, [5])])).tolist() == [-1]

    def test_their_answers_stand_beside_the_rows_own_and_are_cut_to_the_longest_path(self) -> None:
        rows = store_of([rated(7, [5] * 4, good=True), rated(8, [6] * 2, good=False)])
        batch = Side(rows, strangers(rows)).plant([0, 1])
        assert batch.sizes == (2, 2)
        assert [batch.path(leaf).tolist() for leaf in batch.leaves] == [
            [7, 7, 7, 5, 5, 5, 5],
            [7, 7, 7, 6, 6],
            [8, 8, 8, 6, 6],
            [8, 8, 8, 5, 5, 5, 5],
        ]
        assert batch.values.tolist() == [1, 1, 0, 0]
        longer = store_of([rated(7, [5] * 4), TokenRow(Piece(*long_prompt(6)), (rated(1, [6]).branches[0],), (0.0,))])
        batch = Side(longer, strangers(longer)).plant([1])
        assert len(batch.path(batch.leaves[1])) == 7


def long_prompt(length: int) -> tuple[Any, Any]:
    return np.full(length, 9, np.int32), np.zeros(length, np.float32)


@pytest.mark.parametrize("name", ["dpo", "orpo", "simpo", "cpo", "kto", "bco"])
def test_over_a_forest_and_over_padded_rows_it_is_the_same(name: str) -> None:
    rows = tiny.rated_rows(4) if name in ("kto", "bco") else tiny.pair_rows(4)
    told = []
    for forest in (True, False):
        policy = policy_of()
        policy.forest = forest
        policy.model.set_attn_implementation(NAME if forest else "eager")
        (batch,) = objective_of(name).round(policy, [plant(rows)], seed=0).groups[0]
        loss, _ = objective_of(name).loss(policy, batch)
        loss.backward()
        gradients = [weight.grad for weight in policy.trained.parameters() if weight.grad is not None]
        told.append((loss.item(), torch.cat([gradient.flatten() for gradient in gradients])))
    assert told[0][0] == pytest.approx(told[1][0], rel=1e-5)
    assert torch.allclose(told[0][1], told[1][1], atol=1e-5 * float(told[1][1].abs().max()))


@pytest.mark.parametrize("answers", [[0], [1, 4], [0, 2, 3, 4, 5], [6]])
def test_answers_that_are_kept_are_what_they_were(answers: list[int]) -> None:
    """By their tokens and log-probabilities, over rows of all shapes; a trunk's own targets stay with its first."""
    policy, batch = policy_of(), tiny.forest()
    batch = batch.with_extra("number", torch.arange(batch.answers))
    left = keep(batch, answers)
    assert [left.path(leaf).tolist() for leaf in left.leaves] == [
        batch.path(batch.leaves[answer]).tolist() for answer in answers
    ]
    assert left.extras["number"].tolist() == answers
    assert len(left) < len(batch)
    with torch.no_grad():
        whole, part = (by_row(given, policy.logprobs(given)) for given in (batch, left))
    assert torch.allclose(part, whole[answers], atol=1e-5)
    assert sum(left.sizes) == len(answers)
    owners = np.repeat(batch.rows, batch.sizes)
    assert left.rows == tuple(dict.fromkeys(owners[answers].tolist()))


@pytest.mark.parametrize(("label", "kind", "missing"), [(True, "good", "bad"), (False, "bad", "good")])
@pytest.mark.parametrize("objective", ["kto", "bco"])
def test_rows_of_one_kind_alone_are_refused(
    objective: str, label: bool, kind: str, missing: str, tmp_path: Path
) -> None:
    base = tiny.folder(tmp_path / "base")
    rows = [{**row, "label": label} for row in tiny.RATED]
    with pytest.raises(Problem, match=f"all 12 training rows are rated {kind} and none {missing}"):
        tiny.trained(base, tmp_path, objective, rows=rows)


def test_another_model_with_another_vocabulary_is_refused(tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    with pytest.raises(Problem, match="whose vocabulary differs"):
        tiny.trained(base, tmp_path, {"dpo": {"reference_model": "builtin:seedling"}})


def test_a_live_reference_of_full_fine_tuning_names_both_ways_out(tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    with pytest.raises(Problem, match="Set it to precomputed, or name another model as reference_model"):
        tiny.trained(base, tmp_path, "dpo", method="full")


def test_going_on_with_an_adapter_the_reference_is_the_model_with_it(tmp_path: Path) -> None:
    """Precomputed, the first loss is ln 2: the adapter that is there already belongs to the reference."""
    base = tiny.folder(tmp_path / "base")
    lr = {"adamw": {"lr": 2e-2}}
    first = tiny.trained(base, tmp_path / "sft", "sft", method="lora", optimizer=lr)
    options = {"dpo": {"reference": "precomputed"}}
    second = tiny.trained(first.folder.path, tmp_path / "dpo", options, method="lora", optimizer=lr)
    losses = tiny.losses(second)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[-1] < losses[0]
