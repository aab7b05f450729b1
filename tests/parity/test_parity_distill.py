"""Divergences of distillation: against TRL's and torch's own on whole logits, and against plain sums."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from made_codecs import oracle, sides_oracle
from torch import Tensor, nn

from tunesmith.core.plugins import build
from tunesmith.core.problem import Problem
from tunesmith.core.records import Chat, Message
from tunesmith.core.run import TrainSpec
from tunesmith.data.encode import encode
from tunesmith.data.tokenizer import Codec
from tunesmith.methods.lora import Lora
from tunesmith.models import divergence as module
from tunesmith.models.divergence import Divergence
from tunesmith.models.forest import Batch
from tunesmith.models.likelihood import Head
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy
from tunesmith.objectives._rollout import ask_of
from tunesmith.objectives.distill import Distill

FORMS = [
    Divergence("forward"),
    Divergence("reverse", temperature=2.5),
    Divergence("jsd", beta=0.5),
    Divergence("jsd", beta=0.1, temperature=0.7),
]


def logits(seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    teacher, student = (3 * torch.randn(7, 23, dtype=torch.float64, generator=draw) for _ in range(2))
    return teacher, student.requires_grad_()


def plain(teacher: list[float], student: list[float], chosen: Divergence) -> float:
    """The divergence of one pair of distributions, by its sums."""

    def shares(row: list[float]) -> list[float]:
        top = max(row)
        weights = [math.exp((value - top) / chosen.temperature) for value in row]
        return [weight / sum(weights) for weight in weights]

    def kl(of: list[float], to: list[float]) -> float:
        return sum(a * math.log(a / b) for a, b in zip(of, to, strict=True))

    p, q = shares(teacher), shares(student)
    m = [chosen.beta * a + (1 - chosen.beta) * b for a, b in zip(p, q, strict=True)]
    jsd = chosen.beta * kl(p, m) + (1 - chosen.beta) * kl(q, m)
    return chosen.temperature**2 * {"forward": kl(p, q), "reverse": kl(q, p), "jsd": jsd}[chosen.form]


@pytest.mark.parametrize("chosen", FORMS)
def test_is_its_plain_sum(chosen: Divergence) -> None:
    teacher, student = logits()
    found = chosen.between(teacher, student)
    expected = [plain(*rows, chosen) for rows in zip(teacher.tolist(), student.tolist(), strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("chosen", FORMS)
def test_is_that_of_trl(chosen: Divergence) -> None:
    """Loss and gradient of GKD; TRL's has no factor for the temperature."""
    gkd = pytest.importorskip("trl.experimental.gkd")
    teacher, student = logits(1)
    beta = {"forward": 0, "reverse": 1, "jsd": chosen.beta}[chosen.form]
    ours = chosen.between(teacher, student).sum() / chosen.temperature**2
    (own,) = torch.autograd.grad(ours, student)
    theirs = gkd.GKDTrainer.generalized_jsd_loss(
        student[None], teacher[None], beta=beta, temperature=chosen.temperature, reduction="sum"
    )
    (other,) = torch.autograd.grad(theirs, student)
    # TRL rounds beta to float32
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-7)
    assert torch.allclose(own, other, rtol=1e-6, atol=1e-9)


def test_forward_and_reverse_are_torchs() -> None:
    teacher, student = logits(2)
    p, q = teacher.softmax(-1), student.softmax(-1)
    forward, reverse = (Divergence(form).between(teacher, student).sum() for form in ("forward", "reverse"))
    assert torch.allclose(forward, F.kl_div(q.log(), p, reduction="sum"))
    assert torch.allclose(reverse, F.kl_div(p.log(), q, reduction="sum"))


def test_a_mixture_that_is_nearly_one_side_is_that_sides_divergence() -> None:
    """The limits in GKD's paper: JSD / beta is the forward divergence where beta is small, and the other way round."""
    teacher, student = logits(3)
    small = 1e-5
    forward = Divergence("jsd", beta=small).between(teacher, student) / small
    reverse = Divergence("jsd", beta=1 - small).between(teacher, student) / small
    assert torch.allclose(forward, Divergence("forward").between(teacher, student), rtol=1e-2)
    assert torch.allclose(reverse, Divergence("reverse").between(teacher, student), rtol=1e-2)


def pair(*, learns: bool = False, forest: bool = True, entries: int | None = None) -> Policy:
    """A student under LoRA and a teacher of another family and width; learns: whether its head does, too."""
    student = tiny.model("llama")
    method = Lora(start="gaussian", dropout=0.0)
    trained = method.apply(student)
    torch.manual_seed(5)
    for name, weight in trained.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.05)
    if learns:
        student.get_output_embeddings().weight.requires_grad_(True)
    sizes: dict[str, Any] = {} if entries is None else {"vocab_size": entries}
    teacher = tiny.model("qwen2", seed=1, hidden_size=48, head_dim=12, **sizes)
    for model in (student, teacher):
        model.set_attn_implementation("tunesmith_forest" if forest else "eager")
    policy = Policy(student, forest=forest, trained=trained)
    policy.reference = Policy(teacher, forest=forest)
    return policy


def whole(policy: Policy, batch: Batch, objective: Distill) -> Tensor:
    """The loss from whole logits that transformers gives each row by itself."""
    other = policy.reference
    assert other is not None
    total = torch.zeros((), dtype=torch.float64)
    for row in range(batch.answers):
        mine = batch.targets.row == row
        places = batch.positions[batch.targets.source[mine]]
        tokens = batch.path(batch.leaves[row])[None]
        student = policy.model(input_ids=tokens).logits[0, places].double()
        with torch.no_grad():
            teacher = other.model(input_ids=tokens).logits[0, places].double()
        wide = min(student.shape[-1], teacher.shape[-1])
        soft = objective.divergence.between(teacher[:, :wide], student[:, :wide])
        hard = F.cross_entropy(student, batch.targets.token[mine], reduction="none")
        weight = batch.targets.weight[mine]
        total = total + (weight * (objective.hard_weight * hard + (1 - objective.hard_weight) * soft)).sum()
    return total


def gradients(policy: Policy, loss: Tensor) -> dict[str, Tensor]:
    policy.trained.zero_grad()
    loss.backward()
    return {name: weight.grad for name, weight in policy.trained.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("options", [{}, {"form": "reverse", "hard_weight": 0.3}, {"form": "jsd", "temperature": 2.0}])
@pytest.mark.parametrize("learns", [False, True], ids=["frozen head", "head learns"])
def test_a_forest_in_chunks_is_whole_logits_row_by_row(
    options: dict[str, Any], learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, batch = pair(learns=learns), tiny.forest()
    objective = Distill(teacher="other", **options)
    monkeypatch.setattr(module, "CHUNK_NUMBERS", 1)
    loss, _ = objective.loss(policy, batch)
    ours = gradients(policy, loss)
    other = pair(learns=learns, forest=False)
    expected = whole(other, batch, objective)
    theirs = gradients(other, expected)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert (value - theirs[name]).abs().max() <= 1e-3 * theirs[name].abs().max().clamp_min(1e-3), name


def test_logits_of_a_batch_never_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, batch = pair(), tiny.forest()
    seen: list[int] = []
    own = Head.logits
    monkeypatch.setattr(Head, "logits", lambda self, hidden: (seen.append(len(hidden)), own(self, hidden))[1])
    monkeypatch.setattr(module, "CHUNK_NUMBERS", 1)
    objective = Distill(teacher="other")
    objective.loss(policy, batch)[0].backward()
    targets = len(batch.targets)
    assert targets > 2 * module.LEAST_CHUNK
    assert max(seen) == module.LEAST_CHUNK
    assert sum(seen) == 4 * targets


def test_the_teacher_gets_no_gradient_and_no_dropout() -> None:
    policy, batch = pair(), tiny.forest()
    teacher = Policy(tiny.model("gpt2", seed=1, resid_pdrop=0.5), forest=False)
    policy.reference = teacher
    teacher.trained.train()
    found = [Distill(teacher="other").loss(policy, batch)[0] for _ in range(2)]
    assert found[0].item() == found[1].item()
    found[0].backward()
    assert all(weight.grad is None for weight in teacher.model.parameters())
    assert teacher.trained.training


@pytest.mark.parametrize("form", ["forward", "reverse", "jsd"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(form: str) -> None:
    model = tiny.model("llama")
    policy = Policy(model, forest=False)
    policy.reference = Policy(tiny.model("llama"), forest=False)
    objective = Distill(teacher="itself", form=form)
    batch = tiny.forest()
    loss, figures = objective.loss(policy, batch)
    assert loss.item() == pytest.approx(0, abs=1e-4)
    assert float(figures["agreement"]) == objective.count(batch)
    assert max(float(value.abs().max()) for value in gradients(policy, loss).values()) < 1e-4


def test_heads_may_be_padded_to_different_sizes() -> None:
    """Distributions are over what both have; the plain loss is over all that the student has."""
    policy, batch = pair(entries=tiny.vocabulary() + 6), tiny.forest()
    objective = Distill(teacher="other", hard_weight=0.5)
    loss, _ = objective.loss(policy, batch)
    other = pair(forest=False, entries=tiny.vocabulary() + 6)
    assert loss.item() == pytest.approx(whole(other, batch, objective).item(), rel=1e-4)


def test_encoder_decoders_learn_from_each_other() -> None:
    """Against whole logits that transformers gives each answer to its prompt."""
    student, teacher = tiny.model("t5"), tiny.model("t5", seed=1)
    policy, rows = Policy(student, forest=False), tiny.sides_rows()
    policy.reference = Policy(teacher, forest=False)
    objective = Distill(teacher="other", form="jsd", hard_weight=0.25)

    def logits(model: Any, prompt: Tensor, answer: Tensor) -> Tensor:
        shifted = model.prepare_decoder_input_ids_from_labels(answer)
        return model(input_ids=prompt, decoder_input_ids=shifted).logits[0].double()

    expected = 0.0
    with torch.no_grad():
        loss, _ = objective.loss(policy, plant(rows))
        for row in rows:
            for branch in row.branches:
                prompt, answer = (torch.tensor(piece.tokens[None]).long() for piece in (row.trunk, branch))
                mine, theirs = (logits(model, prompt, answer) for model in (student, teacher))
                hard = F.cross_entropy(mine, answer[0], reduction="sum")
                expected += float(0.25 * hard + 0.75 * objective.divergence.between(theirs, mine).sum())
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_a_batch_is_the_sum_of_its_rows() -> None:
    policy, rows = pair(), tiny.forest_rows()
    objective = Distill(teacher="other", form="jsd", hard_weight=0.2)
    with torch.no_grad():
        alone = sum(float(objective.loss(policy, plant([row]))[0]) for row in rows)
        assert float(objective.loss(policy, plant(rows))[0]) == pytest.approx(alone, rel=1e-5)


def test_a_beta_without_effect_and_a_missing_teacher_are_refused() -> None:
    with pytest.raises(Problem, match="has no such term"):
        build("objective", {"distill": {"teacher": "x", "beta": 0.5}})
    with pytest.raises(Problem, match="no given answer is learned from"):
        build("objective", {"distill": {"teacher": "x", "hard_weight": 0.5, "on_policy": 1}})
    with pytest.raises(Problem, match="teacher: this option is required"):
        build("objective", "distill")


def chat_rows() -> list[Any]:
    """Chats as token rows, each with its question."""
    codec = Codec.of(oracle("chatml"))
    chats = [Chat((Message("user", row["instruction"]), Message("assistant", row["output"]))) for row in tiny.CHATS[:6]]
    rules = Distill(teacher="x", on_policy=0.5).rules(TrainSpec())
    found = [encode(chat, codec, rules) for chat in chats]
    return [replace(row, index=number) for number, rows in enumerate(found) for row in rows]


def drawing(share: float, **options: Any) -> tuple[Distill, Policy]:
    policy = pair()
    policy._codec = Codec.of(oracle("chatml"))
    return Distill(teacher="other", on_policy=share, sampling={"max_tokens": 5}, **options), policy


def test_rows_of_chats_hold_their_last_question() -> None:
    """For an encoder-decoder each answer is a row of its own, with its own question."""
    turns = (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    chat = Chat(tuple(Message(role, text) for role, text in turns))  # type: ignore[arg-type]
    rules = Distill(teacher="x", on_policy=0.5).rules(TrainSpec())
    for codec, asked in (
        (Codec.of(oracle("chatml")), ["abc"]),
        (Codec.of(sides_oracle("t5"), encoder_decoder=True), ["a", "abc"]),
    ):
        found = encode(chat, codec, rules)
        assert isinstance(found, list)
        assert ["".join(turn.content for turn in ask_of(row.note).messages) for row in found] == asked
        plain = encode(chat, codec, Distill(teacher="x").rules(TrainSpec()))
        assert isinstance(plain, list)
        assert [row.note for row in plain] == [""] * len(asked)


def test_rows_are_drawn_anew_or_given_and_never_both() -> None:
    """Which rows: a share of them, by the step's seed; the others keep their targets and lose nothing."""
    rows = chat_rows()
    shares = []
    for seed in range(20):
        objective, policy = drawing(0.4)
        batches = [plant(rows[:2]), plant(rows[2:])]
        made = objective.round(policy, batches, seed).groups[0]
        drawn = [row for batch in made if "drawn" in batch.extras for row in batch.rows]
        given = {batch.rows[int(row)] for batch in made if "drawn" not in batch.extras for row in batch.targets.row}
        assert sorted([*drawn, *given]) == list(range(6))
        learned = sum(len(batch.targets) for batch in made if "drawn" not in batch.extras)
        assert learned == sum(row.learned for row in rows if row.index in given)
        shares.append(len(drawn) / 6)
    assert 0.25 < sum(shares) / len(shares) < 0.55


def test_drawn_answers_follow_their_prompts_and_have_no_plain_loss() -> None:
    rows = chat_rows()
    objective, policy = drawing(0.999999, hard_weight=0.5)
    made = objective.round(policy, [plant(rows)], seed=1)
    (batch,) = made.groups[0]
    assert batch.answers == 6
    for number, row in zip(batch.rows, range(6), strict=True):
        start = int(np.flatnonzero(rows[number].trunk.weights)[0])
        path, prompt = batch.path(batch.leaves[row]).tolist(), rows[number].trunk.tokens[:start].tolist()
        assert path[: len(prompt)] == prompt
        assert 1 <= len(path) - len(prompt) <= 5
    assert made.figures["length"] == pytest.approx(len(batch.targets) / 6)
    loss, figures = objective.loss(policy, batch)
    assert loss.item() == pytest.approx(float(figures["divergence"]), rel=1e-6)
    again = objective.round(policy, [plant(rows)], seed=1).groups[0][0]
    assert torch.equal(again.tokens, batch.tokens)


def test_validation_is_on_the_given_answers() -> None:
    rows = chat_rows()
    objective, policy = drawing(0.999999, hard_weight=0.5)
    given, _ = drawing(0.0, hard_weight=0.5)
    with torch.no_grad():
        found, count = objective.measure(policy, [plant(rows)], lambda batch: given.loss(policy, batch))
        assert found["loss"] == pytest.approx(float(given.loss(policy, plant(rows))[0]))
    assert count == sum(row.learned for row in rows)


def test_a_student_that_draws_comes_nearer_to_its_teacher(tmp_path: Path) -> None:
    base, teacher = (tiny.folder(tmp_path / name, seed=seed) for name, seed in (("base", 0), ("teacher", 5)))
    options = {"teacher": str(teacher), "on_policy": 0.5, "sampling": {"max_tokens": 6}}
    settings = {"method": "full", "optimizer": {"adamw": {"lr": 3e-3}}, "validation": {"fraction": 0.3}}
    result = tiny.trained(base, tmp_path, {"distill": options}, **settings, train={"epochs": 5, "rows_per_step": 8})
    validated = [each["divergence"] for each in tiny.figures(result, "validate")]
    assert validated[-1] < 0.9 * validated[0]
    assert "length" in tiny.figures(result)[0]


def test_a_teacher_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    base, teacher = tiny.folder(tmp_path / "base"), tiny.folder(tmp_path / "teacher")
    other = oracle()
    other.add_tokens(["another"])
    other.save_pretrained(teacher)
    with pytest.raises(Problem, match="whose vocabulary differs"):
        tiny.trained(base, tmp_path, {"distill": {"teacher": str(teacher)}})
