"""Losses over vectors against plain loops in float64; steps of several micro-batches and ranks; settings refused."""

from __future__ import annotations

import math
import threading
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from tunesmith.cli.closing import next_commands
from tunesmith.core.plugins import build
from tunesmith.core.problem import Problem
from tunesmith.core.records import Place, Related
from tunesmith.core.rows import Piece, TokenRow
from tunesmith.core.run import TrainSpec
from tunesmith.data.encode import encode
from tunesmith.data.report import Rejected
from tunesmith.methods.lora import Lora
from tunesmith.models.forest import Batch
from tunesmith.models.heads import HeadSpec
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy
from tunesmith.models.pooling import Pooling
from tunesmith.models.probe import choose_attention
from tunesmith.objectives._vectors import Texts, at_widths, contrast, cosent, cosine, triplet
from tunesmith.objectives.embed import Embed

Vectors = NDArray[np.float64]
T = 0.1


def embed(**options: Any) -> Embed:
    found = build("objective", {"embed": options})
    assert isinstance(found, Embed)
    return found


def texts(sizes: list[int], grades: list[float], said: str | None = None, seed: int = 0, width: int = 6) -> Texts:
    """Texts with random vectors; said: a letter for each, the same for equal texts, by default all different."""
    draw = np.random.default_rng(seed)
    letters = sorted(set(said or "")) or list(range(len(grades)))
    known = draw.normal(size=(len(letters), width))
    keys = [letters.index(letter) for letter in said] if said else list(range(len(grades)))
    vectors = known[keys] / np.linalg.norm(known[keys], axis=1, keepdims=True)
    return Texts(
        torch.tensor(vectors, dtype=torch.float64), torch.tensor(grades), torch.tensor(sizes), torch.tensor(keys)
    )


def rows(found: Texts) -> list[tuple[Vectors, Vectors, list[float]]]:
    """Each row as its query, its others and their grades."""
    out, start = [], 0
    for size in found.sizes.tolist():
        part = found.vectors.numpy()[start : start + size]
        out.append((part[0], part[1:], found.grades[start + 1 : start + size].tolist()))
        start += size
    return out


NINE = ([3, 2, 4], [0, 1, 0, 0, 1, 0, 1, 1, 0])


def test_contrast_is_its_formula() -> None:
    """Rows with one near text, with several, and far ones; each is told from all texts but the near ones of its own."""
    found = texts(*NINE)
    loss, figures = contrast(found, T, both=False)
    everyone = [
        (row, other, grade)
        for row, (_, others, grades) in enumerate(rows(found))
        for other, grade in zip(others, grades, strict=True)
    ]
    expected, first = [0.0] * 3, [0] * 3
    for row, (query, others, grades) in enumerate(rows(found)):
        against = [query @ other for where, other, grade in everyone if not (where == row and grade)]
        for other, grade in zip(others, grades, strict=True):
            if grade:
                scores = [query @ other, *against]
                expected[row] -= query @ other / T - math.log(sum(math.exp(score / T) for score in scores))
                first[row] += query @ other > max(against)
    assert loss.tolist() == pytest.approx(expected, rel=1e-9)
    assert figures["accuracy"].tolist() == first


def test_contrast_in_both_directions_is_the_mean_of_two() -> None:
    found = texts(*NINE)
    loss, _ = contrast(found, T, both=True)
    forth, _ = contrast(found, T, both=False)
    back = [0.0] * 3
    for row, (query, others, grades) in enumerate(rows(found)):
        for other, grade in zip(others, grades, strict=True):
            if grade:
                scores = [asked @ other for asked, _, _ in rows(found)]
                back[row] -= query @ other / T - math.log(sum(math.exp(score / T) for score in scores))
    assert loss.tolist() == pytest.approx([(a + b) / 2 for a, b in zip(forth.tolist(), back, strict=True)], rel=1e-9)


@pytest.mark.parametrize(
    ("said", "left_out"),
    [
        ("abcd", {}),
        ("abcb", {0: {3}, 2: {1}}),  # the same near text twice
        ("abad", {0: {3}, 2: {1}}),  # the same query twice: what is near to one is near to the other
        ("abca", {0: {3}}),  # the query itself stands elsewhere as a near text
    ],
)
@pytest.mark.parametrize("both", [False, True])
def test_equal_texts_are_not_held_against_each_other(said: str, left_out: dict[int, set[int]], both: bool) -> None:
    """Two pairs: texts 0 and 1, texts 2 and 3."""
    found = texts([2, 2], [0, 1, 0, 1], said)
    v = found.vectors.numpy()
    expected = []
    for query, near, others, asking in ((0, 1, [3], [2]), (2, 3, [1], [0])):
        right = v[query] @ v[near] / T
        kept = [v[query] @ v[other] / T for other in others if other not in left_out.get(query, ())]
        forth = math.log(sum(map(math.exp, [right, *kept]))) - right
        kept = [v[asked] @ v[near] / T for asked in asking if near not in left_out.get(asked, ())]
        back = math.log(sum(map(math.exp, [right, *kept]))) - right
        expected.append((forth + back) / 2 if both else forth)
    assert contrast(found, T, both)[0].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_pair_alone_has_nothing_to_be_told_from() -> None:
    found = texts([2], [0, 1])
    found.vectors.requires_grad_()
    loss, _ = contrast(found, T, both=True)
    (slope,) = torch.autograd.grad(loss.sum(), found.vectors)
    assert loss.tolist() == [0]
    assert slope.abs().max() == 0


PAIRS = ([2, 2, 2, 2, 2], [0, 1.5, 0, 4, 0, 1.5, 0, 3, 0, 0.2])


def test_cosent_is_its_formula() -> None:
    found = texts(*PAIRS)
    loss, figures = cosent(found, T)
    pairs = [(float(query @ others[0]), grades[0]) for query, others, grades in rows(found)]
    wrong = [math.exp((low - high) / T) for (high, more), (low, less) in product(pairs, pairs) if more > less]
    assert loss.tolist() == pytest.approx([math.log(1 + sum(wrong))] * 5, rel=1e-9)
    assert figures["spearman"].tolist() == pytest.approx([spearmanr(*zip(*pairs, strict=True)).statistic] * 5, abs=1e-6)


def test_cosine_is_its_formula() -> None:
    found = texts(*PAIRS)
    expected = [(float(query @ others[0]) - grades[0]) ** 2 for query, others, grades in rows(found)]
    assert cosine(found)[0].tolist() == pytest.approx(expected, rel=1e-6)


def test_triplet_is_its_formula() -> None:
    found = texts(*NINE)
    loss, figures = triplet(found, 0.4)
    expected, right = [0.0] * 3, [0] * 3
    for row, (query, others, grades) in enumerate(rows(found)):
        for near, far in product(range(len(grades)), repeat=2):
            if grades[near] and not grades[far]:
                lead = query @ others[near] - query @ others[far]
                expected[row] += max(0.0, 0.4 - lead)
                right[row] += lead > 0
    assert loss.tolist() == pytest.approx(expected, rel=1e-9)
    assert figures["accuracy"].tolist() == right


def test_shorter_vectors_are_learned_too() -> None:
    """The loss of each width over vectors that are cut and made length 1 again, weighted."""
    found = texts(*NINE)
    loss, figures = at_widths(found, lambda part: triplet(part, 0.4), {4: 2.0, 2: 0.5})
    expected = triplet(found, 0.4)[0]
    for width, weight in ((4, 2.0), (2, 0.5)):
        short = found.vectors[:, :width] / found.vectors[:, :width].norm(dim=1, keepdim=True)
        expected = expected + weight * triplet(Texts(short, found.grades, found.sizes, found.keys), 0.4)[0]
    assert loss.tolist() == pytest.approx(expected.tolist(), rel=1e-9)
    assert figures["near"].tolist() == triplet(found, 0.4)[1]["near"].tolist()
    whole, _ = at_widths(found, lambda part: triplet(part, 0.4), {6: 3.0})
    assert whole.tolist() == pytest.approx((3 * triplet(found, 0.4)[0]).tolist(), rel=1e-9)


def policy_of(dropout: float = 0.0, ranks: Any = None) -> Policy:
    model = tiny.model(head=HeadSpec("states"))
    forest = choose_attention(model, "auto").forest
    trained = Lora(start="gaussian", dropout=dropout).apply(model)
    for name, weight in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(len(name)))
    return Policy(model, forest=forest, trained=trained, ranks=ranks)


def learned(objective: Embed, policy: Policy, batches: list[Batch], seed: int = 3) -> tuple[float, Tensor]:
    """The loss of a step and its gradient."""
    policy.trained.zero_grad()
    (group,) = objective.round(policy, batches, seed).groups
    total = 0.0
    for batch in group:
        loss, _ = objective.loss(policy, batch)
        if loss.requires_grad:
            loss.backward()
        total += float(loss.detach())
    grads = [weight.grad for weight in policy.trained.parameters() if weight.grad is not None]
    return total, torch.cat([grad.flatten() for grad in grads])


FORMS = [{}, {"direction": "both", "dimensions": [16, 8]}, {"form": "cosent"}]


@pytest.mark.parametrize("options", FORMS)
def test_a_step_in_two_passes_has_the_gradient_of_one(options: dict[str, Any]) -> None:
    objective, policy, found = embed(**options), policy_of(), tiny.related_rows(5)
    loss, slope = learned(objective, policy, [plant(found)])
    cut, cut_slope = learned(objective, policy, [plant(found[:1]), plant(found[1:4]), plant(found[4:])])
    assert cut == pytest.approx(loss, rel=1e-6)
    assert float((slope - cut_slope).abs().max()) < 2e-6 * float(slope.abs().max())


def test_both_passes_draw_the_same_dropout() -> None:
    """Against one pass through everything with the draws that the round gave."""
    objective, policy = embed(), policy_of(dropout=0.3)
    policy.trained.train()
    found = tiny.related_rows(5)
    batches = [plant(found[:2]), plant(found[2:])]
    loss, slope = learned(objective, policy, batches)
    (group,) = objective.round(policy, batches, 3).groups
    policy.trained.zero_grad()
    vectors = []
    for batch in group:
        torch.manual_seed(int(batch.extras["draw"]))
        vectors.append(policy.embeddings(batch, "mean"))
    sizes, grades = torch.tensor([size for b in batches for size in b.sizes]), torch.cat([b.values for b in batches])
    expected, _ = contrast(Texts(torch.cat(vectors), grades, sizes, torch.arange(len(grades))), 0.05, both=False)
    expected.sum().backward()
    whole = torch.cat([weight.grad.flatten() for weight in policy.trained.parameters() if weight.grad is not None])
    assert loss == pytest.approx(float(expected.sum().detach()), rel=1e-6)
    assert float((slope - whole).abs().max()) < 2e-6 * float(whole.abs().max())
    with policy.still():
        assert learned(objective, policy, batches)[0] != pytest.approx(loss, rel=1e-3)


class Pair:
    """Two ranks in two threads."""

    size = 2

    def __init__(self, rank: int, told: dict[int, Any], barrier: threading.Barrier) -> None:
        self.rank, self._told, self._barrier = rank, told, barrier

    def gather(self, tensor: Tensor) -> list[Tensor]:
        self._told[self.rank] = tensor
        self._barrier.wait(300)
        found = [self._told[rank] for rank in range(2)]
        self._barrier.wait(300)
        return found

    def total(self, value: float) -> float:
        return sum(float(part) for part in self.gather(torch.tensor(value)))


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("cut", [3, 5])
def test_ranks_learn_from_each_others_texts(options: dict[str, Any], cut: int) -> None:
    """Two ranks, or one with rows beside one without, together have the loss and the gradient of one."""
    found = tiny.related_rows(5)
    alone, slope = learned(embed(**options), policy_of(), [plant(found)])
    told: dict[int, Any] = {}
    barrier = threading.Barrier(2)
    shares = [[plant(found[1:3]), plant([found[0], *found[3:cut]])], [plant(found[cut:])] if cut < 5 else []]
    done: dict[int, tuple[float, Tensor]] = {}
    policies = [policy_of(ranks=Pair(rank, told, barrier)) for rank in range(2)]

    def work(rank: int) -> None:
        policies[rank].trained.zero_grad()
        own = embed(**options)
        (group,) = own.round(policies[rank], shares[rank], rank).groups
        losses = [own.loss(policies[rank], batch)[0] for batch in group]
        for loss in losses:
            loss.backward()
        grads = [
            w.grad if w.grad is not None else torch.zeros_like(w)
            for w in policies[rank].trained.parameters()
            if w.requires_grad
        ]
        done[rank] = sum(float(loss.detach()) for loss in losses), torch.cat([grad.flatten() for grad in grads])

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert sum(loss for loss, _ in done.values()) == pytest.approx(alone, rel=1e-6)
    together = sum(grad for _, grad in done.values())
    assert float((together - slope).abs().max()) < 2e-6 * float(slope.abs().max())


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
@pytest.mark.parametrize(("family", "under"), [("llama", False), ("llama", True), ("bert", False)])
def test_vectors_are_read_where_the_pooling_says(family: str, under: bool, pooling: Pooling) -> None:
    """Against transformers' own states of each text alone; under: texts that go on from a shared one."""
    model = tiny.model(family, head=HeadSpec("states"))
    found = tiny.related_rows(3, apart=not under, entries=tiny.vocabulary(family))
    forest = choose_attention(model, "auto").forest
    with torch.no_grad():
        ours = Policy(model, forest=forest).embeddings(plant(found), pooling)
        model.set_attn_implementation("eager")
        padded = Policy(model, forest=False).embeddings(plant(found), pooling)
        expected = []
        for row in found:
            for branch in row.branches:
                tokens = torch.from_numpy(np.concatenate([row.trunk.tokens, branch.tokens]))[None].long()
                states = model(input_ids=tokens).last_hidden_state[0]
                one = {"mean": states.mean(0), "last": states[-1], "cls": states[0]}[pooling]
                expected.append(one / one.norm())
    assert forest == (family == "llama")
    assert float((ours - torch.stack(expected)).abs().max()) < 1e-5
    assert float((padded - torch.stack(expected)).abs().max()) < 1e-5


def test_counts_are_those_that_sums_are_divided_by() -> None:
    batch = plant(tiny.related_rows(4))  # rows of one near text, and one or two far ones in turn
    assert embed().count(batch) == 4
    assert embed(form="triplet").count(batch) == 1 + 2 + 1 + 2
    assert embed(form="cosent").count(batch) == embed(form="cosine").count(batch) == 2 + 3 + 2 + 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dimensions": [8, 8]}, "names one twice"),
        ({"dimensions": [8], "weights": [1, 2]}, "has 2 numbers, and dimensions 1"),
        ({"form": "cosine", "temperature": 0.1}, "is 0.1, and the form cosine has none"),
        ({"form": "cosent", "direction": "both"}, "is both, and the form cosent has none"),
        ({"margin": 0.5}, "Take it out, or set form to triplet"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(Problem, match=words):
        build("objective", {"embed": options})


def test_written_out_options_are_read_again() -> None:
    own = embed(form="triplet", margin=0.5)
    assert build("objective", {"embed": own.model_dump(mode="json")}) == own


def test_more_dimensions_than_there_are_is_refused() -> None:
    with pytest.raises(Problem, match="64 is more than the vectors of this model have"):
        embed(dimensions=[64, 8]).equip(policy_of())


def test_pooling_is_that_of_the_model_where_it_is_left_out() -> None:
    objective, told = embed().resolved(HeadSpec("states", pooling="cls"), dict)
    assert isinstance(objective, Embed)
    assert (objective.pooling, told) == ("cls", ("pooling cls: as the model's own files say",))
    plain, _ = embed().resolved(HeadSpec(), dict)
    assert isinstance(plain, Embed)
    assert plain.pooling == "mean"
    with pytest.raises(Problem, match="Set it to mean, last or cls"):
        embed().resolved(HeadSpec("states", pooling="other"), dict)
    assert embed(pooling="last").resolved(HeadSpec("states", pooling="other"), dict) == (embed(pooling="last"), ())


@pytest.mark.parametrize(
    ("name", "options", "grades", "fits"),
    [
        ("embed", {}, (1.0, 0.0), True),
        ("embed", {}, (0.0, 0.0), False),
        ("embed", {}, (0.8,), False),
        ("embed", {"form": "triplet"}, (1.0,), False),
        ("embed", {"form": "cosent"}, (4.5,), True),
        ("embed", {"form": "cosine"}, (4.5,), False),
        ("rerank", {}, (2.0, 0.0), True),
        ("rerank", {}, (1.0, 1.0), False),
        ("rerank", {}, (0.0, -1.0), False),
        ("rerank", {"form": "pairwise"}, (0.0, -1.0), True),
        ("rerank", {"form": "pointwise"}, (0.3,), True),
        ("rerank", {"form": "pointwise"}, (1.3,), False),
    ],
)
def test_rows_that_a_form_cannot_learn_from_are_listed(
    name: str, options: dict[str, Any], grades: tuple[float, ...], fits: bool
) -> None:
    from made_codecs import codec

    objective: Any = build("objective", {name: options})
    record = Related("a", tuple("bcd"[: len(grades)]), grades, place=Place("f", 1))
    found = encode(record, codec(), objective.rules(TrainSpec()))
    assert isinstance(found, Rejected) != fits
    if isinstance(found, Rejected):
        assert found.reason == "unfit grades"
        assert f"the grades are {', '.join(f'{grade:g}' for grade in grades)}" in found.message


def one(length: int) -> Piece:
    return Piece(np.arange(3, 3 + length, dtype=np.int32), np.zeros(length, np.float32))


class TestRerank:
    def test_is_its_formula(self) -> None:
        """Each form on the scores that the model gives, in plain loops."""
        model = tiny.model(head=HeadSpec("score"))
        policy = Policy(model, forest=choose_attention(model, "auto").forest)
        graded = [(1.0, 0.0, 0.5), (0.0, 1.0), (1.0, 1.0, 0.0)]
        found = [
            TokenRow(one(3 + n), tuple(one(2 + m + n) for m in range(len(g))), values=g) for n, g in enumerate(graded)
        ]
        batch = plant(found)
        with torch.no_grad():
            scores = [part.tolist() for part in policy.scores(batch).double().split(batch.sizes)]
        listwise = pairwise = pointwise = 0.0
        pairs = 0
        for s, g in zip(scores, graded, strict=True):
            total = sum(math.exp(score) for score in s)
            listwise -= sum(
                grade / sum(g) * math.log(math.exp(score) / total) for score, grade in zip(s, g, strict=True)
            )
            for i, j in product(range(len(g)), repeat=2):
                if g[i] > g[j]:
                    pairwise += math.log1p(math.exp(s[j] - s[i]))
                    pairs += 1
            for score, grade in zip(s, g, strict=True):
                share = 1 / (1 + math.exp(-score))
                pointwise -= grade * math.log(share) + (1 - grade) * math.log(1 - share)
        for form, expected, count in (
            ("listwise", listwise, 3),
            ("pairwise", pairwise, pairs),
            ("pointwise", pointwise, 8),
        ):
            objective: Any = build("objective", {"rerank": {"form": form}})
            assert float(objective.loss(policy, batch)[0].detach()) == pytest.approx(expected, rel=1e-5)
            assert objective.count(batch) == count

    def test_the_query_is_computed_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The model reads as many tokens as the query and its documents have."""
        model = tiny.model(head=HeadSpec("score"))
        policy = Policy(model, forest=choose_attention(model, "auto").forest)
        seen: list[int] = []
        model.model.embed_tokens.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel()))
        policy.scores(plant([TokenRow(one(20), (one(3), one(4)), values=(1.0, 0.0))]))
        assert seen == [27]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base"))


def test_a_run_names_the_pooling_and_says_why(base: Path, tmp_path: Path) -> None:
    result = tiny.trained(base, tmp_path, "embed", train={"steps": 1})
    assert "pooling: mean" in result.folder.run_file.read_text("utf-8")
    notes = [event.values["text"] for event in tiny.events(result, "note")]
    assert "pooling mean: since the model's files say nothing of it" in notes
    proposed = [command.split()[1] for command in next_commands(result.folder)]
    assert proposed == ["evaluate", "fold"]  # and no chat


@pytest.mark.parametrize(
    ("first", "method", "then", "words"),
    [
        ("sft", "lora", "embed", "this adapter writes answers .* needs one that gives vectors .* Fold it first"),
        ("embed", "lora", "sft", "this adapter gives vectors .* Start from the model that it was made from"),
        ("embed", "full", "sft", "this model gives vectors .* Start from the model that it was made from"),
    ],
)
def test_a_result_with_another_last_layer_is_no_start(
    first: str, method: str, then: str, words: str, base: Path, tmp_path: Path
) -> None:
    """Tied embeddings would let a model of vectors pass for one that writes."""
    tied = tiny.folder(tmp_path / "tied", tie_word_embeddings=True)
    result = tiny.trained(tied, tmp_path / "first", first, method=method, train={"steps": 1})
    with pytest.raises(Problem, match=f"(?s)model.path: {words}"):
        tiny.trained(result.folder.path, tmp_path / "then", then)


def test_vectors_are_learned_from_a_model_that_writes_and_from_one_of_vectors(base: Path, tmp_path: Path) -> None:
    """One after the other, and an adapter is gone on with."""
    path = base
    for number, (objective, method) in enumerate(
        (("sft", "full"), ("embed", "full"), ("embed", "lora"), ("embed", "lora"))
    ):
        result = tiny.trained(path, tmp_path / str(number), objective, method=method, train={"steps": 1})
        path = result.folder.path
    assert result.ended == "done"
