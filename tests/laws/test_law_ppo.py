"""PPO: what tokens are worth against plain loops, the loss against its formula, and runs that learn, stop and go on."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tunesmith.core.plugins import build
from tunesmith.core.problem import Problem
from tunesmith.core.records import Chat, Message
from tunesmith.core.run import Run
from tunesmith.generate.engines import Answer
from tunesmith.methods.lora import Lora
from tunesmith.models.forest import Batch
from tunesmith.models.policy import Alone, Policy
from tunesmith.objectives import Round
from tunesmith.objectives._online import Online
from tunesmith.objectives._returns import advantages, moments, steered, token_rewards
from tunesmith.objectives._rollout import Group, Question
from tunesmith.objectives.ppo import Ppo
from tunesmith.train.verb import resume, train

GAMMA, DECAY = 0.9, 0.8
POSITIVE = 6
"""The seed of answers that the policy below finds likelier than its reference does."""


def series(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards and values of the tokens of answers of uneven lengths, and the answer of each."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.tensor([0] * 5 + [1] + [2] * 9 + [3] * 2)
    rewards, values = (torch.randn(len(rows), generator=draw, dtype=torch.float64) for _ in range(2))
    return rewards, values, rows


def by_definition(rewards: list[float], values: list[float], gamma: float, decay: float) -> list[float]:
    """A_t = sum over k of (gamma lambda)^k d_(t+k), for one answer, as the paper has it."""
    length = len(rewards)
    after = [*values[1:], 0.0]
    errors = [rewards[t] + gamma * after[t] - values[t] for t in range(length)]
    return [sum((gamma * decay) ** k * errors[t + k] for k in range(length - t)) for t in range(length)]


@pytest.mark.parametrize(("gamma", "decay"), [(1.0, 0.95), (GAMMA, DECAY), (0.5, 0.0), (1.0, 1.0)])
def test_advantages_are_their_definition(gamma: float, decay: float) -> None:
    rewards, values, rows = series()
    found = advantages(rewards, values, rows, gamma, decay)
    assert found.dtype == torch.float64
    for row in range(4):
        mine = rows == row
        expected = by_definition(rewards[mine].tolist(), values[mine].tolist(), gamma, decay)
        assert found[mine].tolist() == pytest.approx(expected, rel=1e-12)


def test_with_lambda_1_advantages_are_what_is_still_to_come() -> None:
    rewards, values, rows = series(1)
    found = advantages(rewards, values, rows, 1.0, 1.0)
    for row in range(4):
        mine = rows == row
        coming = rewards[mine].flip(0).cumsum(0).flip(0)
        assert torch.allclose(found[mine] + values[mine], coming)


def test_advantages_of_nothing_are_none() -> None:
    assert len(advantages(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.long), 1.0, 1.0)) == 0


def test_the_answers_reward_stands_at_its_last_token() -> None:
    rows, ends = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([5.0, -1.0, 2.0])
    gap = torch.tensor([1.0, 0.5, -1.0, 2.0, 0.0, 4.0])
    found = token_rewards(rows, ends, gap, 0.1)
    assert found.tolist() == pytest.approx([-0.1, -0.05, 5.1, -1.2, 0.0, 1.6])


def test_beta_is_steered_towards_its_target() -> None:
    """Closed values of Ziegler et al.: at most a fifth of the share of the horizon, in the right direction."""
    assert steered(0.1, 12.0, 6.0, 0.5) == pytest.approx(0.1 * 1.1)
    assert steered(0.1, 0.0, 6.0, 0.5) == pytest.approx(0.1 * 0.9)
    assert steered(0.1, 6.6, 6.0, 0.5) == pytest.approx(0.1 * 1.05)
    assert steered(0.1, 6.0, 6.0, 0.5) == 0.1
    assert steered(0.1, -50.0, 6.0, 100.0) == pytest.approx(0.08), "it stays above 0 however large a step is"


def test_moments_are_those_of_all_numbers() -> None:
    parts = [torch.tensor([1.0, 2.0, 6.0]), torch.tensor([-3.0])]
    whole = torch.cat(parts)
    assert moments(parts, Alone()) == pytest.approx((float(whole.mean()), float(whole.std(unbiased=False))))


# Rounds over answers that are given, so that every number can be worked out apart.


def given(seed: int = 0, questions: int = 5, n: int = 2) -> list[Group]:
    """Groups of answers of uneven lengths, with rewards."""
    draw = np.random.default_rng(seed)
    groups = []
    for row in range(questions):
        prompt = draw.integers(5, tiny.vocabulary(), 3 + row).astype(np.int32)
        lengths = draw.integers(1, 9, n)
        answers = tuple(
            Answer("x", tuple(draw.integers(5, tiny.vocabulary(), size).tolist()), "stop") for size in lengths
        )
        ask = Chat((Message("user", "x"),))
        numbers = {
            "reward": draw.normal(size=n).tolist(),
            "length": lengths.tolist(),
            "cut": [float(row == 1)] * n,
            "empty": [0.0] * n,
            "distinct": [1.0] * n,
        }
        groups.append(Group(Question(prompt, ask, "", row, ""), answers, numbers))
    return groups


def policy_of(objective: Ppo, *, critic: bool = True) -> Policy:
    """A tiny model under LoRA with a change that is not zero, and a critic that is not zero either."""
    model = tiny.model()
    method = Lora(start="gaussian", dropout=0.0)
    trained = method.apply(model)
    model.set_attn_implementation("tunesmith_forest")
    torch.manual_seed(3)
    for name, weight in trained.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.05)
    policy = Policy(model, forest=True, trained=trained, off=lambda: method.off(trained), budget=40)
    policy.opened = {"engine": None, "rewards": _Named()}
    policy.beside = objective.equip(policy)
    assert policy.beside is not None
    if critic:
        for weight in policy.beside.parameters():
            nn.init.normal_(weight, std=0.1)
    return policy


class _Named:
    """Stands for rewards whose answers are judged already."""

    names = ("exact",)
    rewards = (build("reward", "exact"),)


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[Group]], None]:
    """Have every round learn from these answers."""

    def set_to(groups: Sequence[Group]) -> None:
        monkeypatch.setattr(Online, "drawn", lambda self, policy, asked, n, seed: list(groups))

    monkeypatch.setattr("tunesmith.objectives.ppo.questions", lambda batches: [])
    return set_to


def answers_of(made: Round) -> dict[tuple[int, ...], dict[str, list[float]]]:
    """What the round found of each answer's tokens, by the answer's path."""
    out = {}
    for batch in {id(batch): batch for group in made.groups for batch in group}.values():
        for row, leaf in enumerate(batch.leaves):
            mine = batch.targets.row == row
            names = ("old", "reference", "value", "advantage", "return")
            out[tuple(batch.path(leaf).tolist())] = {name: batch.extras[name][mine].tolist() for name in names}
    return out


def own_logprobs(policy: Policy, path: Sequence[int], start: int) -> tuple[list[float], Tensor]:
    """Of each token of an answer, by transformers alone; and the state that each is predicted from."""
    policy.model.set_attn_implementation("eager")
    tokens = torch.tensor([list(path)])
    with torch.no_grad():
        out = policy.model(input_ids=tokens, output_hidden_states=True)
    policy.model.set_attn_implementation("tunesmith_forest")
    logprobs = out.logits[0].double().log_softmax(-1)
    found = [float(logprobs[place - 1, path[place]]) for place in range(start, len(path))]
    return found, out.hidden_states[-1][0, start - 1 : -1]


def test_a_round_is_worked_out_as_by_hand(answered: Callable[[Sequence[Group]], None]) -> None:
    objective = Ppo(answers=2, beta=0.3, gamma=GAMMA, gae_lambda=DECAY, cut_penalty=0.7, minibatches=2, epochs=3)
    policy, groups = policy_of(objective), given()
    answered(groups)
    made = objective.round(policy, [], seed=0)
    assert len(made.groups) == 6
    found, gains, expected = answers_of(made), [], {}
    for group in groups:
        for answer, reward in zip(group.answers, group.numbers["reward"], strict=True):
            start, path = len(group.question.tokens), (*group.question.tokens.tolist(), *answer.tokens)
            old, states = own_logprobs(policy, path, start)
            with Lora().off(policy.trained):
                reference, _ = own_logprobs(policy, path, start)
            assert policy.beside is not None
            with torch.no_grad():
                values = policy.beside(states).squeeze(-1).tolist()
            rewards = [-0.3 * (one - other) for one, other in zip(old, reference, strict=True)]
            rewards[-1] += reward - 0.7 * group.numbers["cut"][0]
            gain = by_definition(rewards, values, GAMMA, DECAY)
            gains += gain
            returns = [one + other for one, other in zip(gain, values, strict=True)]
            expected[path] = {"old": old, "reference": reference, "value": values, "advantage": gain, "return": returns}
    assert found.keys() == expected.keys()
    mean, deviation = float(np.mean(gains)), float(np.std(gains))
    for path, own in expected.items():
        own["advantage"] = [(gain - mean) / deviation for gain in own["advantage"]]
        for name, values in own.items():
            assert found[path][name] == pytest.approx(values, rel=1e-3, abs=2e-4), name
    _check_figures(made.figures, groups, list(expected.values()))


def _check_figures(figures: Any, groups: Sequence[Group], tokens: Sequence[dict[str, list[float]]]) -> None:
    gaps = [np.subtract(one["old"], one["reference"]) for one in tokens]
    returns, values = (np.concatenate([one[name] for one in tokens]) for name in ("return", "value"))
    expected = {
        "reward": np.mean([group.numbers["reward"] for group in groups]),
        "cut": 0.2,
        "beta": 0.3,
        "kl": np.concatenate(gaps).mean(),
        "kl_answer": np.mean([gap.sum() for gap in gaps]),
        "entropy": -np.concatenate([one["old"] for one in tokens]).mean(),
        "explained_variance": 1 - np.var(returns - values) / np.var(returns),
        "length": np.mean([group.numbers["length"] for group in groups]),
    }
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("values", ["head", "shared"])
@pytest.mark.parametrize("clip_values", [0.05, None])
def test_the_loss_is_its_formula(
    values: str, clip_values: float | None, answered: Callable[[Sequence[Group]], None]
) -> None:
    """Against plain loops over tokens, after the policy has moved on; gradients by difference quotients."""
    objective = Ppo(answers=2, values=values, clip=0.1, clip_values=clip_values, value_weight=0.4)
    policy = policy_of(objective)
    answered(given())
    batch = objective.round(policy, [], seed=0).groups[0][0]
    move(policy)
    loss, figures = objective.loss(policy, batch)
    with torch.no_grad():
        assert policy.beside is not None
        now, seen = policy.logprobs(batch).tolist(), policy.beside(policy.states(batch)).squeeze(-1).tolist()
    expected = {"policy_loss": 0.0, "value_loss": 0.0, "clipped": 0.0}
    for place, (own, value) in enumerate(zip(now, seen, strict=True)):
        of = {name: float(batch.extras[name][place]) for name in ("old", "advantage", "value", "return")}
        ratio = math.exp(own - of["old"])
        free, held = ratio * of["advantage"], min(max(ratio, 0.9), 1.1) * of["advantage"]
        expected["policy_loss"] -= min(free, held)
        expected["clipped"] += free > held
        error = (value - of["return"]) ** 2
        if clip_values is not None:
            near = of["value"] + min(max(value - of["value"], -clip_values), clip_values)
            error = max(error, (near - of["return"]) ** 2)
        expected["value_loss"] += error / 2
    assert expected["clipped"] > 0
    assert {name: float(figure) for name, figure in figures.items()} == pytest.approx(expected, rel=1e-4)
    assert loss.item() == pytest.approx(expected["policy_loss"] + 0.4 * expected["value_loss"], rel=1e-4)
    assert objective.count(batch) == len(batch.targets)


def move(policy: Policy) -> None:
    """Change the policy and its critic a little, as an update does."""
    torch.manual_seed(9)
    with torch.no_grad():
        for name, weight in policy.trained.named_parameters():
            if "lora_B" in name:
                weight.add_(0.02 * torch.randn_like(weight))
        assert policy.beside is not None
        for weight in policy.beside.parameters():
            weight.add_(0.05 * torch.randn_like(weight))


@pytest.mark.parametrize("values", ["head", "shared"])
def test_what_the_values_teach(values: str, answered: Callable[[Sequence[Group]], None]) -> None:
    """Where every answer is worth the same and nothing is clipped, only the critic has a gradient, unless it shares."""
    objective = Ppo(answers=2, values=values)
    policy = policy_of(objective)
    answered(given())
    batch = objective.round(policy, [], seed=0).groups[0][0]
    batch = batch.with_extra("advantage", torch.zeros_like(batch.extras["advantage"]))
    objective.loss(policy, batch)[0].backward()
    assert policy.beside is not None
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in policy.beside.parameters())
    trunk = [weight.grad for weight in policy.trained.parameters() if weight.grad is not None]
    assert (max(float(grad.abs().max()) for grad in trunk) > 0) == (values == "shared")


def test_the_critic_starts_at_zero_and_is_no_part_of_the_model() -> None:
    objective = Ppo()
    policy = policy_of(objective, critic=False)
    assert policy.beside is not None
    assert all(not weight.any() for weight in policy.beside.parameters())
    inside = {id(weight) for weight in policy.trained.parameters()}
    assert not inside & {id(weight) for weight in policy.beside.parameters()}


def test_two_ranks_whiten_as_one(answered: Callable[[Sequence[Group]], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Advantages, figures and parts of a round are those of all ranks together."""
    objective, groups = Ppo(answers=2, minibatches=2, beta=0.2), given(2, 6)
    answered(groups)
    alone = objective.round(policy_of(objective), [], seed=5)
    monkeypatch.setattr(Online, "drawn", lambda self, policy, asked, n, seed: groups[policy.ranks.rank :: 2])
    ranks = ranks_of(2)
    made: list[Round] = [alone, alone]

    def work(rank: int) -> None:
        made[rank] = objective.round(policies[rank], [], seed=5 + rank)

    policies = [policy_of(objective) for _ in range(2)]
    for rank, policy in enumerate(policies):
        policy.ranks = ranks[rank]
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert made[0].figures == pytest.approx(made[1].figures)
    assert made[0].figures == pytest.approx(alone.figures, rel=1e-4, abs=1e-6)
    for number in range(2):
        whole, parts = answers_of(Round([alone.groups[number]])), {}
        for each in made:
            parts |= answers_of(Round([each.groups[number]]))
        assert parts.keys() == whole.keys()
        for path, found in parts.items():
            for name, values in found.items():
                assert values == pytest.approx(whole[path][name], rel=1e-3, abs=1e-4)


class Together:
    """Ranks as threads of one process."""

    def __init__(self, rank: int, size: int, shared: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size, self.shared, self.barrier = rank, size, shared, barrier

    def gather(self, tensor: Tensor) -> list[Tensor]:
        self.shared[self.rank] = tensor
        self.barrier.wait(60)
        found = list(self.shared)
        self.barrier.wait(60)
        return found

    def total(self, value: float) -> float:
        return float(sum(self.gather(torch.tensor(value, dtype=torch.float64))))


def ranks_of(size: int) -> list[Together]:
    shared: list[Any] = [None] * size
    barrier = threading.Barrier(size)
    return [Together(rank, size, shared, barrier) for rank in range(size)]


def test_the_budget_does_not_matter(answered: Callable[[Sequence[Group]], None]) -> None:
    """The sum over the micro-batches of an update is the same however its answers are cut into them."""
    objective = Ppo(answers=2, minibatches=2)
    answered(given())
    sums = []
    for budget in (1, 40, 4096):
        policy = policy_of(objective)
        policy.budget = budget
        made = objective.round(policy, [], seed=0)
        move(policy)
        with torch.no_grad():
            sums.append([sum(float(objective.loss(policy, batch)[0]) for batch in group) for group in made.groups])
    assert sums[0] == pytest.approx(sums[1], rel=1e-4)
    assert sums[0] == pytest.approx(sums[2], rel=1e-4)


def test_beta_is_carried_and_steered(answered: Callable[[Sequence[Group]], None]) -> None:
    answered(given(POSITIVE))
    for target, higher in ((1e-6, True), (1e6, False)):
        objective = Ppo(answers=2, beta=0.3, target_kl=target, horizon=10)
        policy = policy_of(objective)
        first = objective.round(policy, [], seed=0)
        assert first.figures["kl_answer"] > 0.1
        assert (first.figures["beta"], policy.carried["beta"] > 0.3) == (0.3, higher)
        second = objective.round(policy, [], seed=0)
        assert second.figures["beta"] == pytest.approx(0.3 * (1.2 if higher else 0.8))


def test_options_without_effect_are_refused() -> None:
    for options in ({"reference_model": "x", "beta": 0}, {"target_kl": 6.0, "beta": 0}):
        with pytest.raises(Problem, match="with beta 0 nothing is held"):
            build("objective", {"ppo": options})


# Runs.

PROMPTS = [{"prompt": row["instruction"]} for row in tiny.CHATS]
LETTERS = "def reward(answer: str) -> float:\n    return sum(map(str.islower, answer)) / max(1, len(answer))\n"
FULL: dict[str, Any] = {"method": "full", "optimizer": {"adamw": {"lr": 1e-2}}}
KEPT: dict[str, Any] = {"keep": "last", "rows_per_step": 12, "checkpoint_every": 1000, "validate_every": 1000}


def drawing(where: Path, **options: Any) -> dict[str, Any]:
    """PPO with a reward that is a function, over short answers, several updates a step."""
    where.mkdir(parents=True, exist_ok=True)
    (where / "letters.py").write_text(LETTERS, "utf-8")
    own = {"rewards": {"python": {"path": str(where / "letters.py")}}, "sampling": {"max_tokens": 6}}
    return {"ppo": {**own, "answers": 2, "epochs": 2, "minibatches": 2, "target_kl": 1.0, "horizon": 30, **options}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base"))


def short(base: Path, where: Path, code: Path, dropout: float = 0.1, **train: Any) -> Run:
    settings = {"rows_per_step": 4, "epochs": 1, "checkpoint_every": 2, "validate_every": 2, **train}
    options = {"method": {"lora": {"dropout": dropout}}, "validation": {"fraction": 0.2}, "train": settings}
    return tiny.run_of(base, where, drawing(code), rows=PROMPTS, **options)


def test_a_run_that_was_stopped_between_updates_goes_on_bit_for_bit(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers, their worth and beta are those of the step that was begun; nothing is drawn anew."""
    whole = train(short(base, tmp_path / "whole", tmp_path))
    own, calls = Ppo.loss, []

    def loss(self: Ppo, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        calls.append(None)
        if len(calls) == 4 + 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return own(self, policy, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Ppo, "loss", loss)
        cut = train(short(base, tmp_path / "cut", tmp_path))
    assert (cut.ended, cut.state.step) == ("preempted", 1)
    assert len(cut.state.told) == 2, "two of the four updates of the second step were done"
    drawn: list[int] = []
    draw = Online.drawn
    monkeypatch.setattr(Online, "drawn", lambda self, *rest: (drawn.append(1), draw(self, *rest))[1])
    again = resume(cut.folder.path)
    assert len(drawn) == whole.state.step - 2
    assert tiny.figures(again) == tiny.figures(whole)
    assert tiny.figures(again, "validate") == tiny.figures(whole, "validate")
    assert again.state.carried == whole.state.carried
    assert again.state.carried["beta"] != 0.05
    names = sorted(path.name for path in whole.folder.checkpoints.iterdir())
    for part in ("model", *(f"checkpoints/{name}" for name in names)):
        left, right = (tiny.tensors(each.folder.path / part) for each in (whole, again))
        assert left.keys() == right.keys()
        assert all(torch.equal(value, right[name]) for name, value in left.items()), part


def test_the_critic_is_in_checkpoints_and_not_in_the_model(base: Path, tmp_path: Path) -> None:
    result = train(short(base, tmp_path, tmp_path, steps=1))
    (checkpoint,) = result.folder.checkpoints.glob("step-*")
    width = tiny.model().config.hidden_size
    kept = [name for name, value in tiny.tensors(checkpoint).items() if value.shape == (1, width)]
    assert kept
    assert not [name for name, value in tiny.tensors(result.folder.model).items() if value.shape == (1, width)]
    plain = AutoModelForCausalLM.from_pretrained(base)
    PeftModel.from_pretrained(plain, str(result.folder.model))


def test_the_budget_of_a_batch_does_not_change_a_run(base: Path, tmp_path: Path) -> None:
    runs = [
        train(short(base, tmp_path / str(budget), tmp_path, 0.0, tokens_per_batch=budget, steps=1))
        for budget in (4096, 1)
    ]
    told = [{**tiny.figures(run)[0], "tokens": 0, "total_tokens": 0} for run in runs]
    assert told[0] == pytest.approx(told[1], rel=1e-3, abs=1e-5)


def test_a_model_that_changes_itself_is_held_to_another(base: Path, tmp_path: Path) -> None:
    """There is no untouched model under the method full, so the run is refused until it names one."""
    options: dict[str, Any] = {"rows": PROMPTS, "method": "full", "train": {"steps": 1}}
    with pytest.raises(Problem, match="Name another model as reference_model"):
        tiny.trained(base, tmp_path / "none", drawing(tmp_path), **options)
    named = drawing(tmp_path, reference_model=str(base))
    (told,) = tiny.figures(tiny.trained(base, tmp_path / "named", named, **options))
    assert told["kl"] == pytest.approx(0, abs=1e-5)


@pytest.fixture(scope="module")
def taught(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A policy that answers well or says that it does not know, by half, and a reward model that likes answers."""
    where = tmp_path_factory.mktemp("taught")
    first = tiny.trained(base, where / "1", "pretrain", **FULL, train={**KEPT, "epochs": 8})
    both = [*tiny.CHATS, *({**row, "output": "I do not know."} for row in tiny.CHATS)]
    policy = tiny.trained(first.folder.path, where / "2", "sft", rows=both, **FULL, train={**KEPT, "epochs": 40})
    lora = {"method": "lora", "optimizer": {"adamw": {"lr": 1e-2}}}
    judge = tiny.trained(policy.folder.path, where / "3", "reward", **lora, train={**KEPT, "epochs": 8})
    return policy.folder.path, judge.folder.path


def test_four_stages_in_a_row(taught: tuple[Path, Path], tmp_path: Path) -> None:
    """Pre-trained, tuned, judged by a model of preferences: the reward rises, and the KL comes near its target."""
    policy, judge = taught
    result = tiny.trained(
        policy,
        tmp_path,
        {
            "ppo": {
                "rewards": [{"model": {"path": str(judge)}}],
                "answers": 4,
                "sampling": {"max_tokens": 24},
                "epochs": 2,
                "target_kl": 6.0,
                "horizon": 200,
                "cut_penalty": 1.0,
            }
        },
        rows=PROMPTS,
        method="lora",
        optimizer={"adamw": {"lr": 1e-2}},
        train={**KEPT, "epochs": 8, "schedule": "constant"},
    )
    told = tiny.figures(result)
    assert told[0]["kl"] == pytest.approx(0, abs=1e-5), "the first answers are the reference's own"
    assert np.mean([each["reward"] for each in told[-3:]]) > told[0]["reward"] + 0.3
    assert max(each["kl_answer"] for each in told) < 12
    betas = [each["beta"] for each in told]
    for before, after, each in zip(betas, betas[1:], told, strict=False):
        assert (after > before) == (each["kl_answer"] > 6.0)
    assert {"value_loss", "explained_variance", "clipped", "entropy", "length", "cut", "policy_loss"} <= set(told[0])
