"""Rollouts: a step does not depend on how its answers were cut into micro-batches, ordered or dealt over ranks; the
gradient goes through the policy alone; equal rewards teach nothing; the draws follow from the seed.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import made_codecs
import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

from tunesmith.core.plugins import build
from tunesmith.core.rows import Piece, TokenRow
from tunesmith.generate.engines import Answer, Answers, Ask
from tunesmith.generate.sampling import Sampling
from tunesmith.methods.lora import Lora
from tunesmith.models.forest import Batch
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy
from tunesmith.objectives import Round
from tunesmith.objectives._gradient import PolicyGradient
from tunesmith.objectives._rollout import deal, questions
from tunesmith.rewards import Asked
from tunesmith.rewards._sum import Judged

SMALL = {"answers": 4, "sampling": {"max_tokens": 8}}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("grpo", {"normalise": "answer"}),
    ("grpo", {"normalise": "token", "beta": 0.2, "cut_answers": "mask"}),
    ("grpo", {"normalise": "constant", "scale": "batch", "ratio": "sequence", "minibatches": 2, "epochs": 2}),
    ("reinforce", {"baseline": "leave_one_out"}),
    ("reinforce", {"baseline": "mean", "beta": 0.0, "minibatches": 3}),
    ("reinforce", {"baseline": "none", "epochs": 2, "cut_answers": "mask"}),
]
LAW = pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{n}-{number}" for number, (n, _) in enumerate(CASES)])
WORDS = ("rain", "an oak", "salt", "a lark", "the city of Rome")


class Scripted(Answers):
    """Answers that follow from the prompt alone, in tokens of uneven lengths; one in four is cut."""

    def answer(self, asks: Sequence[Ask], sampling: Sampling) -> Iterator[Answer]:
        counts: dict[str, int] = {}
        for ask in asks:
            said = repr(ask)
            counts[said] = counts.get(said, -1) + 1
            draw = np.random.default_rng([len(said), sum(said.encode()), counts[said], sampling.temperature == 0])
            tokens = draw.integers(3, tiny.vocabulary(), int(draw.integers(1, 9)))
            yield Answer("x" * len(tokens), tuple(tokens.tolist()), "length" if counts[said] == 2 else "stop")

    def stream(self, ask: Ask, sampling: Sampling) -> Generator[str, None, None]:
        raise NotImplementedError


class Graded:
    """A reward that follows from the answer alone."""

    names = ("graded",)

    def __init__(self, value: Callable[[Asked], float] = lambda asked: asked.tokens % 3 - 0.1 * len(asked.key)) -> None:
        self.value = value
        self.rewards = (build("reward", "exact"),)

    def __call__(self, asked: Sequence[Asked]) -> Judged:
        found = tuple(self.value(one) for one in asked)
        return Judged(found, {"graded": found})


def objective_of(name: str, options: dict[str, Any]) -> PolicyGradient:
    found = build("objective", {name: {**SMALL, **options}})
    assert isinstance(found, PolicyGradient)
    return found


def policy_of(*, forest: bool = True, budget: int = 4096, family: str = "llama", scripted: bool = True) -> Policy:
    """A tiny model under LoRA with a change that is not zero, that answers as it is written or by itself."""
    method = Lora(start="gaussian", dropout=0.0)
    model = tiny.model(family)
    trained = method.apply(model)
    torch.manual_seed(0)
    for name, weight in trained.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.05)
    if forest:
        model.set_attn_implementation("tunesmith_forest")
    codec = made_codecs.sides_codec() if family == "t5" else made_codecs.codec()
    off = lambda: method.off(trained)  # noqa: E731
    policy = Policy(model, forest=forest, trained=trained, off=off, codec=codec, budget=budget)
    policy.opened = {"engine": Scripted(), "rewards": Graded()} if scripted else {"rewards": Graded()}
    return policy


def prompt(number: int, family: str = "llama") -> TokenRow:
    messages = [{"role": "user", "content": f"what is {WORDS[number]}?"}]
    note = json.dumps({"messages": messages, "tools": [], "answer": "k" * number})
    ids = np.arange(3, 9 + number, dtype=np.int32)
    return TokenRow(Piece(ids, np.zeros(len(ids), np.float32)), index=number, note=note)


def prompts(*numbers: int) -> list[Batch]:
    """Fresh batches of a step, two prompts each."""
    rows = [prompt(number) for number in numbers or range(len(WORDS))]
    return [plant(rows[start : start + 2]) for start in range(0, len(rows), 2)]


def learned(objective: PolicyGradient, policy: Policy, made: Round) -> tuple[list[float], list[dict[str, Tensor]]]:
    """The loss of each update as it would be without those before it, and its gradient."""
    losses, slopes = [], []
    for group in made.groups:
        policy.trained.zero_grad()
        loss = torch.stack([objective.loss(policy, batch)[0] for batch in group]).sum()
        loss = loss / sum(objective.count(batch) for batch in group)
        loss.backward()
        losses.append(loss.item())
        slopes.append(gradient(policy))
    return losses, slopes


def gradient(policy: Policy) -> dict[str, Tensor]:
    return {n: weight.grad.clone() for n, weight in policy.trained.named_parameters() if weight.grad is not None}


def assert_same(objective: PolicyGradient, *rounds: tuple[Policy, Round]) -> None:
    (first, expected), *others = [(made, learned(objective, policy, made)) for policy, made in rounds]
    assert any(float(value.abs().max()) > 1e-4 for value in expected[1][0].values())
    for made, found in others:
        assert found[0] == pytest.approx(expected[0], rel=1e-5, abs=1e-7)
        for ours, theirs in zip(found[1], expected[1], strict=True):
            assert tiny.difference(ours, theirs) < 1e-5
        assert made.figures == pytest.approx(first.figures, rel=1e-4, abs=1e-6)


@LAW
def test_a_step_does_not_depend_on_its_cutting(name: str, options: dict[str, Any]) -> None:
    """A group that is longer than the budget becomes several trees, down to one answer each."""
    objective = objective_of(name, options)
    rounds = [
        (policy, objective.round(policy, prompts(), 1))
        for budget in (4096, 30, 1)
        if (policy := policy_of(budget=budget))
    ]
    sizes = [sum(len(group) for group in made.groups) for _, made in rounds]
    assert sizes[0] < sizes[1] < sizes[2] == 4 * len(WORDS) * objective.epochs
    assert_same(objective, *rounds)


@LAW
def test_a_step_does_not_depend_on_its_order(name: str, options: dict[str, Any]) -> None:
    objective = objective_of(name, options)
    rounds = [
        (policy := policy_of(), objective.round(policy, prompts(*order), 1))
        for order in ((0, 1, 2, 3, 4), (3, 0, 4, 2, 1))
    ]
    assert_same(objective, *rounds)


@LAW
def test_a_forest_is_padded_rows(name: str, options: dict[str, Any]) -> None:
    objective = objective_of(name, options)
    rounds = [(policy := policy_of(forest=forest), objective.round(policy, prompts(), 1)) for forest in (True, False)]
    assert_same(objective, *rounds)


class Pair:
    """One of two ranks, in threads."""

    size = 2

    def __init__(self, rank: int, told: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.told, self.barrier = rank, told, barrier

    def gather(self, tensor: Tensor) -> list[Tensor]:
        return self._exchange(tensor)

    def total(self, value: float) -> float:
        return float(sum(self._exchange(value)))

    def _exchange(self, value: Any) -> list[Any]:
        self.told[self.rank] = value
        self.barrier.wait(30)
        found = list(self.told)
        self.barrier.wait(30)
        return found


@LAW
@pytest.mark.parametrize("shares", [((0, 1, 2), (3, 4)), ((), (0, 1, 2, 3, 4))], ids=["uneven", "one-idle"])
def test_two_ranks_are_one(name: str, options: dict[str, Any], shares: Any) -> None:
    """Each draws for its own prompts; the losses of an update add up, and the figures are those of all answers."""
    objective = objective_of(name, options)
    alone = policy_of()
    whole = objective.round(alone, prompts(), 1)
    expected, slopes = learned(objective, alone, whole)
    told, barrier = [None, None], threading.Barrier(2)
    policies = [policy_of() for _ in shares]

    def side(rank: int) -> Round:
        policies[rank].ranks = Pair(rank, told, barrier)
        return objective.round(policies[rank], prompts(*shares[rank]) if shares[rank] else [], 1)

    with ThreadPoolExecutor(2) as threads:
        made = list(threads.map(side, range(2)))
    assert made[0].figures == made[1].figures == pytest.approx(whole.figures, rel=1e-4, abs=1e-6)
    assert made[0].notes == made[1].notes
    assert policies[0].carried == policies[1].carried == pytest.approx(alone.carried, rel=1e-4, abs=1e-6)
    for update in range(len(whole.groups)):
        groups = [one.groups[update] for one in made]
        count = sum(objective.count(batch) for group in groups for batch in group)
        losses = []
        for policy, group in zip(policies, groups, strict=True):
            policy.trained.zero_grad()
            for batch in group:
                loss = objective.loss(policy, batch)[0] / count
                loss.backward()
                losses.append(loss.item())
        both = [gradient(policy) for policy in policies]
        added = {n: sum(part[n] for part in both if n in part) for n in slopes[update]}
        assert sum(losses) == pytest.approx(expected[update], rel=1e-5, abs=1e-7)
        assert tiny.difference(added, slopes[update]) < 1e-5


@LAW
def test_the_gradient_goes_through_the_policy_alone(name: str, options: dict[str, Any]) -> None:
    objective, policy = objective_of(name, options), policy_of()
    made = objective.round(policy, prompts(), 1)
    for batch in (batch for group in made.groups for batch in group):
        assert all(not value.requires_grad for value in batch.extras.values())
    _, slopes = learned(objective, policy, made)
    assert set(slopes[0]) == {n for n, weight in policy.trained.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize(
    ("name", "options"),
    [("grpo", {"scale": scale}) for scale in ("std", "none", "batch")] + [("reinforce", {"beta": 0.0})],
)
def test_equal_rewards_teach_nothing(name: str, options: dict[str, Any]) -> None:
    """Exactly, though a mean of three tenths is not a tenth in floating point."""
    objective, policy = objective_of(name, {**options, "answers": 3}), policy_of()
    policy.opened["rewards"] = Graded(lambda asked: 0.1 + len(asked.key))
    made = objective.round(policy, prompts(), 1)
    assert made.figures["equal"] == 1
    losses, slopes = learned(objective, policy, made)
    assert losses == [0.0]
    assert all(float(value.abs().max()) == 0 for value in slopes[0].values())


def test_answers_that_were_cut_have_no_say_where_they_are_masked() -> None:
    """Their reward still counts as what the others are compared with."""
    objective, policy = objective_of("grpo", {"cut_answers": "mask"}), policy_of()
    (group,) = objective.round(policy, prompts(), 1).groups
    for batch in group:
        cut = batch.extras["cut"] == 1
        assert cut.any()
        assert (batch.extras["share"][cut] == 0).all()
        assert (batch.extras["share"][~cut] > 0).all()
    plain = objective_of("grpo", {}).round(policy, prompts(), 1).groups[0]
    assert torch.equal(plain[0].extras["advantage"], group[0].extras["advantage"])


class Turns(Answers):
    """All answers are the same, but those to the last prompt of each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def answer(self, asks: Sequence[Ask], sampling: Sampling) -> Iterator[Answer]:
        self.calls.append((len(asks), sampling.seed))
        for number in range(len(asks)):
            yield Answer(str(number % 2 if number >= len(asks) - 4 else 0), (3,), "stop")

    def stream(self, ask: Ask, sampling: Sampling) -> Generator[str, None, None]:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("redraws", "calls", "equal"), [(0, [20], 0.8), (2, [20, 16, 12], 0.4), (9, [20, 16, 12, 8, 4], 0)]
)
def test_groups_that_are_worth_the_same_are_drawn_again(redraws: int, calls: list[int], equal: float) -> None:
    """With other seeds, at most so often as is set; a group that differs stays."""
    policy, engine = policy_of(), Turns()
    policy.opened = {"engine": engine, "rewards": Graded(lambda asked: float(asked.text))}
    made = objective_of("grpo", {"redraws": redraws}).round(policy, prompts(), 1)
    assert [asked for asked, _ in engine.calls if asked] == calls
    assert len({seed for _, seed in engine.calls}) == len(engine.calls)
    assert made.figures["equal"] == pytest.approx(equal)


def test_the_draws_follow_from_the_seed() -> None:
    """Of the model itself: the same seed gives the same tokens, another one others."""
    objective = objective_of("grpo", {})

    def drawn(seed: int) -> list[Tensor]:
        made = objective.round(policy_of(scripted=False), prompts(), seed)
        return [batch.tokens for group in made.groups for batch in group]

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert any(one.shape != two.shape or not torch.equal(one, two) for one, two in zip(first, other, strict=False))


def test_the_policy_learns_the_tokens_that_it_drew() -> None:
    """Below each prompt stand its answers, drawn tokens and all, each predicted from the token before it."""
    objective, policy = objective_of("grpo", {}), policy_of()
    asked = questions(prompts())
    drawn = list(Scripted().answers([question.ask for question in asked], Sampling(temperature=1), 4))
    (group,) = objective.round(policy, prompts(), 1).groups
    for batch in group:
        for answer, leaf in enumerate(batch.leaves):
            place = int(batch.extras["place"][answer])
            row, number = divmod(place, 4)
            expected = [*asked[row].tokens.tolist(), *drawn[row][number].tokens]
            assert batch.path(leaf).tolist() == expected
            targets = batch.targets.token[batch.targets.row == answer]
            assert targets.tolist() == list(drawn[row][number].tokens)


def test_an_encoder_decoder_learns_from_its_answers_too() -> None:
    objective, policy = objective_of("grpo", {"beta": 0.1}), policy_of(forest=False, family="t5", scripted=False)
    made = objective.round(policy, prompts(), 1)
    _, slopes = learned(objective, policy, made)
    assert any(float(value.abs().max()) > 1e-5 for value in slopes[0].values())


def test_groups_are_dealt_to_updates_evenly_and_wholly() -> None:
    policy = policy_of()
    objective = objective_of("grpo", {})
    groups = objective._groups(policy, questions(prompts()), 1)
    parts = deal(groups, 2, 7, policy.ranks)
    assert sorted(len(part) for part in parts) == [2, 3]
    assert sorted(group.question.row for part in parts for group in part) == [0, 1, 2, 3, 4]
    others = [deal(groups, 2, seed, policy.ranks) for seed in range(5)]
    assert len({tuple(group.question.row for group in part[0]) for part in others}) > 1
    assert len(deal(groups, 9, 7, policy.ranks)) == 5


def test_validation_takes_one_greedy_answer_and_turns_the_sign_of_its_reward() -> None:
    objective, policy = objective_of("grpo", {}), policy_of()
    sums, count = objective.measure(policy, prompts(), lambda batch: objective.loss(policy, batch))
    assert count == len(WORDS)
    asked = questions(prompts())
    answers = [one for (one,) in Scripted().answers([question.ask for question in asked], Sampling(), 1)]
    rewards = [len(one.tokens) % 3 - 0.1 * len(q.key) for one, q in zip(answers, asked, strict=True)]
    assert sums["reward"] == pytest.approx(sum(rewards))
    assert sums["loss"] == -sums["reward"]
    assert sums["length"] == sum(len(one.tokens) for one in answers)
    assert policy.carried == {}
