"""What every objective keeps: a sum, a count of the same rows, a gradient through the policy alone, and it learns."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from tunesmith.core.events import Event
from tunesmith.core.plugins import build, find, names
from tunesmith.core.records import KINDS, Labelled, Preference, Rated, Related, Tagged
from tunesmith.core.rows import TokenRow
from tunesmith.core.run import TrainSpec
from tunesmith.methods.full import Full
from tunesmith.methods.lora import Lora
from tunesmith.models.forest import Batch
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy
from tunesmith.models.probe import choose_attention
from tunesmith.objectives import Objective
from tunesmith.train.verb import resume, train

TAGS = ["O", "B-LOC", "B-PER", "I-PER"]
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "bco": [{}, {"beta": 0.5}],
    "classify": [
        {"labels": ["bad", "good", "odd"]},
        {"labels": ["bad", "good", "odd"], "weights": [0.5, 2.0, 1.0], "label_smoothing": 0.1},
        {"labels": ["bad", "good", "odd"], "per_text": "several", "weights": [0.5, 2.0, 1.0]},
    ],
    "cpo": [{}, {"beta": 0.5, "label_smoothing": 0.2, "sft_weight": 0.3}],
    "dpo": [
        {},
        {"beta": 0.5, "label_smoothing": 0.2},
        {"beta": 0.5, "form": "robust", "label_smoothing": 0.2},
        {"beta": 0.3, "form": "hinge", "normalise": "length"},
        {"form": "ipo"},
        {"normalise": "length", "sft_weight": 0.5},
    ],
    "distill": [{"teacher": "x"}, {"teacher": "x", "form": "jsd", "temperature": 2.0, "hard_weight": 0.3}],
    "embed": [
        {},
        {"pooling": "last", "direction": "both", "temperature": 0.5, "dimensions": [16, 8], "weights": [2.0, 0.5]},
        {"form": "cosent", "temperature": 0.2},
        {"form": "cosine"},
        {"form": "triplet", "margin": 0.5},
    ],
    "kto": [{}, {"beta": 0.5, "good_weight": 1.5, "bad_weight": 0.5}],
    "orpo": [{}, {"beta": 1.0}],
    "regress": [{}, {"huber": 0.5}],
    "rerank": [{}, {"form": "pairwise"}, {"form": "pointwise"}],
    "reward": [{}, {"margin": 0.5}, {"center": 0.1}],
    "seq2seq": [{}, {"label_smoothing": 0.1}],
    "sft": [{}, {"label_smoothing": 0.1}],
    "tag": [{"labels": TAGS}, {"labels": TAGS, "weights": [0.5, 1.0, 2.0, 1.0]}],
    "simpo": [{}, {"beta": 1.0, "gamma": 0.2, "label_smoothing": 0.1, "sft_weight": 1.0}],
}
OFFLINE = [name for name in names("objective") if not getattr(find("objective", name), "online", False)]
"""Those that learn from rows as they are given; the others keep the same over rounds that they draw: laws of rollouts
and of PPO."""
CASES = [
    pytest.param(name, options, id=f"{name}-{options}") for name in OFFLINE for options in VARIANTS.get(name, [{}])
]


def objective_of(name: str, options: dict[str, Any]) -> Objective:
    found = build("objective", {name: options})
    assert isinstance(found, Objective)
    return found


def policy_of(objective: Objective, method: Lora | Full | None = None, seed: int = 0) -> Policy:
    """A tiny model with the head that the objective needs, under LoRA with a change that is not zero."""
    model = tiny.model(family_of(objective), head=objective.head, seed=seed)
    forest = choose_attention(model, "auto").forest
    method = method or Lora(start="gaussian", dropout=0.0)
    trained = method.apply(model)
    torch.manual_seed(seed)
    for name, weight in trained.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.05)
    off = (lambda: method.off(trained)) if method.reversible else None
    policy = Policy(model, forest=forest, trained=trained, off=off)
    if objective.other_model is not None:
        policy.reference = Policy(tiny.model(seed=seed + 7), forest=False)
    return policy


def family_of(objective: Objective) -> str:
    return "t5" if objective.needs_encoder else "llama"


def rows_of(objective: Objective, seed: int = 0) -> list[TokenRow]:
    """Rows as the objective takes them."""
    if objective.needs_encoder:
        return tiny.sides_rows(seed=seed)
    if objective.takes is Labelled:
        labels = objective.head.labels
        return tiny.labelled_rows(len(labels), len(labels) if objective.head.several else 1, seed)
    if objective.takes is Tagged:
        return tiny.tagged_rows(len(objective.head.labels), seed)
    if objective.takes is Rated:
        return tiny.rated_rows(4, seed)
    if objective.takes is Related:
        return tiny.related_rows(seed=seed, apart=objective.rules(TrainSpec()).apart)
    return tiny.pair_rows(4, seed) if objective.takes is Preference else tiny.forest_rows(seed=seed)


def batch_of(objective: Objective, seed: int = 0) -> Batch:
    """Such rows as a batch."""
    return plant(rows_of(objective, seed))


def made(objective: Objective, policy: Policy, *batches: Batch) -> list[Batch]:
    """The micro-batches of a step, as the objective makes them ready."""
    (group,) = objective.round(policy, batches, seed=0).groups
    return group


def gradients(policy: Policy, loss: Tensor) -> dict[str, Tensor]:
    policy.trained.zero_grad()
    loss.backward()
    return {name: weight.grad for name, weight in policy.trained.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize(("name", "options"), CASES)
class TestObjective:
    def test_says_what_it_takes(self, name: str, options: dict[str, Any]) -> None:
        objective = objective_of(name, options)
        assert objective.takes in KINDS
        assert objective.head.kind in tiny.HEADS
        assert objective.unit

    def test_the_loss_of_two_batches_is_the_sum_of_theirs(self, name: str, options: dict[str, Any]) -> None:
        objective = objective_of(name, options)
        policy = policy_of(objective)
        parts = made(objective, policy, *(batch_of(objective, seed) for seed in (1, 2)))
        (whole,) = made(objective, policy, plant_both(objective))
        with torch.no_grad():
            found = [objective.loss(policy, part) for part in parts]
            loss, figures = objective.loss(policy, whole)
        assert loss.item() == pytest.approx(sum(float(part) for part, _ in found), rel=1e-5)
        assert objective.count(whole) == sum(objective.count(part) for part in parts)
        for figure, value in figures.items():
            assert float(value) == pytest.approx(sum(float(told[figure]) for _, told in found), rel=1e-4, abs=1e-5)

    def test_loss_and_figures_are_single_numbers(self, name: str, options: dict[str, Any]) -> None:
        objective = objective_of(name, options)
        policy = policy_of(objective)
        loss, figures = objective.loss(policy, made(objective, policy, batch_of(objective))[0])
        assert loss.shape == ()
        assert loss.requires_grad
        assert all(value.shape == () and not value.requires_grad for value in figures.values())

    def test_the_gradient_goes_through_the_policy_alone(self, name: str, options: dict[str, Any]) -> None:
        """What `round` adds is a number to it; frozen weights get nothing."""
        objective = objective_of(name, options)
        policy = policy_of(objective)
        (batch,) = made(objective, policy, batch_of(objective))
        assert all(not value.requires_grad for value in batch.extras.values())
        found = gradients(policy, objective.loss(policy, batch)[0])
        learns = {name for name, weight in policy.trained.named_parameters() if weight.requires_grad}
        assert set(found) == learns
        assert any(value.abs().max() > 0 for value in found.values())

    def test_the_gradient_is_the_slope_of_the_loss(self, name: str, options: dict[str, Any]) -> None:
        """Against a difference quotient along the gradient itself."""
        objective = objective_of(name, options)
        policy = policy_of(objective)
        (batch,) = made(objective, policy, batch_of(objective))
        found = gradients(policy, objective.loss(policy, batch)[0])
        norm = math.sqrt(sum(float(value.double().square().sum()) for value in found.values()))
        weights = dict(policy.trained.named_parameters())
        values = []
        step = 3e-3
        for sign in (1, -2):
            with torch.no_grad():
                for weight, slope in found.items():
                    weights[weight].add_(slope, alpha=sign * step / norm)
                values.append(float(objective.loss(policy, batch)[0]))
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(norm, rel=0.03)

    def test_a_step_does_not_depend_on_its_cutting_and_order(self, name: str, options: dict[str, Any]) -> None:
        """Rows one by one, and all in one batch the other way round."""
        objective = objective_of(name, options)
        policy = policy_of(objective)
        rows = rows_of(objective)
        with torch.no_grad():
            alone = made(objective, policy, *(plant([row]) for row in rows))
            (together,) = made(objective, policy, plant(rows[::-1]))
            found = [float(objective.loss(policy, batch)[0]) for batch in alone]
            assert float(objective.loss(policy, together)[0]) == pytest.approx(sum(found), rel=1e-5)

    def test_a_forest_is_padded_rows(self, name: str, options: dict[str, Any]) -> None:
        """Losses, figures and gradients; an encoder-decoder has one way of its own (laws of sides)."""
        objective = objective_of(name, options)
        told: list[tuple[float, dict[str, float], dict[str, Tensor]]] = []
        for forest in {not objective.needs_encoder, False}:
            policy = policy_of(objective)
            policy.forest = forest
            (batch,) = made(objective, policy, batch_of(objective))
            loss, figures = objective.loss(policy, batch)
            numbers = {figure: float(value) for figure, value in figures.items()}
            told.append((loss.item(), numbers, gradients(policy, loss)))
        for loss, figures, slopes in told[1:]:
            assert loss == pytest.approx(told[0][0], rel=1e-5)
            assert figures == pytest.approx(told[0][1], rel=1e-4, abs=1e-5)
            for weight, slope in slopes.items():
                assert torch.allclose(slope, told[0][2][weight], rtol=1e-3, atol=1e-5 * float(slope.abs().max() + 1))

    def test_learns_what_it_is_shown(self, name: str, options: dict[str, Any], tmp_path: Path) -> None:
        base, objective = settled(name, options, tmp_path)
        train = {"epochs": 6}
        if objective_of(name, options).takes is Rated:  # steps of few rows differ in their share of good ones
            train = {"epochs": 8, "rows_per_step": 12}
        settings = {"method": "lora", "optimizer": {"adamw": {"lr": 2e-2}}, "train": train}
        result = tiny.trained(base, tmp_path, objective, **settings)
        losses = tiny.losses(result)
        assert losses[-1] < 0.9 * losses[0]
        assert result.ended == "done"


@pytest.mark.parametrize("name", OFFLINE)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Rollouts, and stops between the updates of a step, have laws of their own."""
    base, objective = settled(name, VARIANTS.get(name, [{}])[0], tmp_path)
    options: dict[str, Any] = {
        "method": {"lora": {"dropout": 0.1}},
        "validation": {"fraction": 0.2},
        "train": {"steps": 4, "checkpoint_every": 3, "validate_every": 2, "tokens_per_batch": 150},
    }

    def stop(event: Event) -> None:
        if event.kind == "step" and event.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    whole = train(tiny.run_of(base, tmp_path / "whole", objective, **options))
    first = train(tiny.run_of(base, tmp_path / "parts", objective, **options), hear=stop)
    assert (first.ended, first.state.step) == ("preempted", 2)
    second = resume(first.folder.path)
    assert tiny.figures(second) == tiny.figures(whole)
    ours, theirs = (tiny.tensors(run.folder.model) for run in (second, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[weight]) for weight, value in ours.items())


def settled(name: str, options: dict[str, Any], where: Path) -> tuple[Path, dict[str, Any]]:
    """A base that the objective can learn on, and the objective as in a run file, with a teacher if it needs one."""
    if "teacher" in options:
        options = {**options, "teacher": str(tiny.folder(where / "teacher", "qwen2", seed=7))}
    return tiny.folder(where / "base", family_of(objective_of(name, options))), {name: options}


def plant_both(objective: Objective) -> Batch:
    """The rows of both batches of the sum law, in one."""
    return plant([*rows_of(objective, 1), *rows_of(objective, 2)])


class TestDpo:
    def test_starts_at_ln_2(self) -> None:
        objective = objective_of("dpo", {})
        model = tiny.model()
        method = Lora()
        trained = method.apply(model)
        policy = Policy(model, forest=False, trained=trained, off=lambda: method.off(trained))
        batch = objective.prepare(policy, tiny.pairs(5))
        loss, figures = objective.loss(policy, batch)
        assert loss.item() / objective.count(batch) == pytest.approx(math.log(2), abs=1e-6)
        assert float(figures["chosen"]) == pytest.approx(0, abs=1e-4)

    def test_is_its_formula(self) -> None:
        """On log-probabilities of a plain loop over each answer, in float64."""
        objective = objective_of("dpo", {"beta": 0.3, "label_smoothing": 0.1})
        policy = policy_of(objective)
        rows = tiny.pair_rows(4)
        loss, figures = objective.loss(policy, objective.prepare(policy, plant(rows)))
        expected, accuracy = 0.0, 0
        for row in rows:
            own = [answer_logprob(policy, row, number) for number in range(2)]
            with policy.still(), Lora().off(policy.trained):
                reference = [answer_logprob(policy, row, number) for number in range(2)]
            lead = 0.3 * ((own[0] - reference[0]) - (own[1] - reference[1]))
            expected += 0.9 * math.log1p(math.exp(-lead)) + 0.1 * math.log1p(math.exp(lead))
            accuracy += lead > 0
        assert loss.item() == pytest.approx(expected, rel=1e-4)
        assert float(figures["accuracy"]) == accuracy


def answer_logprob(policy: Policy, row: Any, number: int) -> float:
    """The log-probability of one answer by transformers' own logits."""
    tokens = torch.tensor([[*row.trunk.tokens.tolist(), *row.branches[number].tokens.tolist()]])
    policy.model.set_attn_implementation("eager")
    with torch.no_grad():
        logprobs = policy.model(input_ids=tokens).logits.double().log_softmax(-1)
    policy.model.set_attn_implementation("tunesmith_forest")
    start = len(row.trunk)
    return float(sum(logprobs[0, place - 1, tokens[0, place]] for place in range(start, tokens.shape[1])))


class TestReward:
    def test_starts_at_ln_2_where_scores_are_zero(self) -> None:
        objective = objective_of("reward", {})
        model = tiny.model(head="score")
        nn.init.zeros_(model.score.weight)
        batch = tiny.pairs(5)
        loss, _ = objective.loss(Policy(model, forest=False), batch)
        assert loss.item() / objective.count(batch) == pytest.approx(math.log(2), abs=1e-6)

    def test_is_its_formula(self) -> None:
        objective = objective_of("reward", {"margin": 0.25, "center": 0.1})
        policy = policy_of(objective)
        rows = tiny.pair_rows(4)
        loss, figures = objective.loss(policy, plant(rows))
        expected, lead = 0.0, 0.0
        policy.model.set_attn_implementation("eager")
        for row in rows:
            chosen, rejected = (own_score(policy, row, number) for number in range(2))
            expected += math.log1p(math.exp(-(chosen - rejected - 0.25))) + 0.1 * (chosen + rejected) ** 2
            lead += chosen - rejected
        assert loss.item() == pytest.approx(expected, rel=1e-4)
        assert float(figures["lead"]) == pytest.approx(lead, rel=1e-4)


def own_score(policy: Policy, row: Any, number: int) -> float:
    """The score that transformers' own classification model gives one answer."""
    tokens = torch.tensor([[*row.trunk.tokens.tolist(), *row.branches[number].tokens.tolist()]])
    with torch.no_grad():
        return float(policy.model(input_ids=tokens).logits[0, 0])


@pytest.mark.parametrize("name", ["pretrain", "sft"])
def test_next_token_losses_are_transformers_own(name: str) -> None:
    """The mean over learned tokens that transformers computes from labels, where every weight is 0 or 1."""
    objective = objective_of(name, {})
    policy = policy_of(objective)
    rows = [row for row in tiny.forest_rows() if not row.branches]
    rows = [tiny.binary(row) for row in rows]
    batch = plant(rows)
    loss, _ = objective.loss(policy, batch)
    longest = max(len(row) for row in rows)
    tokens, labels = (torch.full((len(rows), longest), filler) for filler in (0, -100))
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.from_numpy(row.trunk.tokens)
        learned = torch.from_numpy(row.trunk.weights) > 0
        labels[number, : len(row)][learned] = tokens[number, : len(row)][learned]
    mask = (torch.arange(longest) < torch.tensor([[len(row)] for row in rows])).long()
    policy.model.set_attn_implementation("eager")
    with torch.no_grad():
        theirs = policy.model(input_ids=tokens, attention_mask=mask, labels=labels).loss
    assert loss.item() / objective.count(batch) == pytest.approx(float(theirs), rel=1e-5)
