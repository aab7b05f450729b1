"""Medusa: heads that start as the base's and learn to look ahead, and answers drafted with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from made_codecs import codec
from made_methods import TOKENS, NextToken, logits, method_of, policy_of, shake, t5
from torch import nn

from tunesmith.cli.verbs import chat
from tunesmith.core.problem import Problem
from tunesmith.core.records import Chat, Message, Text
from tunesmith.core.run import ModelSpec
from tunesmith.generate.batches import Job
from tunesmith.generate.engines import Ask
from tunesmith.generate.engines.local import Local
from tunesmith.generate.engines.medusa import Medusa, MedusaAnswers
from tunesmith.generate.opened import open_model
from tunesmith.generate.sampling import Sampling
from tunesmith.methods import Losses, medusa, trainable
from tunesmith.methods.medusa import heads_of
from tunesmith.models.forest import Batch
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy

ASKS: Sequence[Ask] = (
    Chat((Message("user", "what is rain?"),)),
    Text("what is oak"),
    Chat((Message("user", "what is a canoe?"),)),
    Text("the"),
)


@pytest.mark.parametrize("vocabulary", ["tied", "own"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "cohere", "granite"])
def test_heads_start_as_the_head_of_the_base(family: str, vocabulary: str) -> None:
    model: Any = tiny.model(family)
    expected = logits(model).argmax(-1)
    trained = method_of("medusa", vocabulary=vocabulary).apply(model).eval()
    heads = heads_of(trained)
    with torch.no_grad():
        hidden = getattr(model, model.base_model_prefix)(input_ids=TOKENS).last_hidden_state
        for number in range(3):
            head = heads.head(model, number)
            assert torch.allclose(head.logits(heads(hidden, number)), logits(model).float(), atol=1e-5)
            assert torch.equal(heads.guesses(model, hidden.flatten(0, 1), number), expected.flatten())
    width, size_ = 32, model.get_output_embeddings().weight.shape[0]
    own = 3 * (width * width + width) + (3 * width * size_ if vocabulary == "own" else 0)
    assert sum(weight.numel() for weight in trainable(trained).values()) == own


class _NeverAsked(NextToken):
    def loss(self, policy: Policy, batch: Batch) -> Losses:
        raise AssertionError("a frozen base has nothing to learn from the objective")


def foretold(model: Any, rows: Sequence[Any], decay: float, count: int) -> tuple[float, list[float]]:
    """The loss and the accuracies of heads, row by row and token by token, from whole logits."""
    heads, total = heads_of(model), 0.0
    right: list[list[bool]] = [[] for _ in range(count)]
    for row in rows:
        tokens = torch.from_numpy(row.trunk.tokens.astype("int64"))
        hidden = model.model(input_ids=tokens[None]).last_hidden_state[0]
        for number in range(count):
            part: Any = heads.residual[number]
            state = hidden + nn.functional.silu(hidden @ part.weight.T + part.bias)
            scores = torch.log_softmax(model.lm_head(state), dim=-1)
            for place in range(len(tokens) - 2 - number):
                near, far = row.trunk.weights[place + 1], row.trunk.weights[place + 2 + number]
                if near > 0 and far > 0:
                    wanted = int(tokens[place + 2 + number])
                    total -= decay ** (number + 1) * float(far) * float(scores[place, wanted])
                    right[number].append(int(scores[place].argmax()) == wanted)
    return total, [sum(part) / len(part) for part in right]


@pytest.mark.parametrize("forest", [True, False])
def test_the_loss_is_the_formula_and_nothing_of_the_base_is_asked(forest: bool) -> None:
    model = tiny.model()
    method = method_of("medusa", heads=3, decay=0.7)
    trained = method.apply(model)
    shake(trained, 0.3)
    policy_of(model, trained)
    rows = tiny.single_rows(tiny.forest_rows())
    batch = plant(rows)
    loss, figures = method.loss(Policy(model, forest=forest, trained=trained.train()), batch, _NeverAsked())
    with torch.no_grad():
        expected, right = foretold(model, rows, 0.7, 3)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    found = [float(figures[f"head_{number}"]) / NextToken().count(batch) for number in (1, 2, 3)]
    assert found == pytest.approx(right)
    loss.backward()
    assert all(weight.grad is not None for weight in trainable(trained).values())
    assert all(".medusa." in name for name, weight in trained.named_parameters() if weight.grad is not None)


def test_answers_to_one_prompt_are_foretold_each_by_itself() -> None:
    """A forest with several answers gives each of them what it gives alone."""
    model = tiny.model()
    method = method_of("medusa")
    trained = method.apply(model)
    shake(trained, 0.3)
    policy = policy_of(model, trained)
    whole, _ = method.loss(policy, tiny.forest(), NextToken())
    padded, _ = method.loss(Policy(model, forest=False, trained=trained), tiny.forest(), NextToken())
    assert float(whole.detach()) == pytest.approx(float(padded.detach()), rel=1e-5)
    pairs = tiny.pair_rows(1)
    alone = [method.loss(policy, plant([row]), NextToken())[0] for row in tiny.single_rows(pairs)]
    together, _ = method.loss(policy, plant(pairs), NextToken())
    assert float(together.detach()) == pytest.approx(float(sum(alone, torch.zeros(())).detach()), rel=1e-5)


def test_a_frozen_base_computes_without_dropout_while_its_heads_learn() -> None:
    model = tiny.model("gpt2", resid_pdrop=0.5)
    method = method_of("medusa")
    trained = method.apply(model).train()
    policy = policy_of(model, trained)
    first, second = (method.loss(policy, tiny.forest(), NextToken())[0] for _ in range(2))
    assert torch.equal(first, second)
    assert trained.training


def test_joint_training_adds_the_losses_and_computes_the_base_once() -> None:
    model = tiny.model()
    method = method_of("medusa", base="learns", weight=0.3, heads_lr=5.0)
    trained = method.apply(model).train()
    shake(trained, 0.1)
    policy, calls = policy_of(model, trained), []
    policy.decoder.register_forward_hook(lambda *_: calls.append(1))
    total, figures = method.loss(policy, tiny.forest(), NextToken())
    assert len(calls) == 1
    objective, _ = NextToken().loss(policy, tiny.forest())
    frozen, _ = method_of("medusa").loss(policy, tiny.forest(), NextToken())
    assert float(total) == pytest.approx(float(objective) + 0.3 * float(frozen), rel=1e-5)
    assert float(figures["heads"]) == pytest.approx(float(frozen), rel=1e-5)
    total.backward()
    assert all(weight.grad is not None for weight in trained.parameters())
    base, heads = method.groups(trained, 1e-3)
    assert (base["lr"], heads["lr"]) == (1e-3, 5e-3)
    assert {id(weight) for weight in heads["params"]} == {id(weight) for weight in heads_of(trained).parameters()}
    assert len(base["params"]) + len(heads["params"]) == len(trainable(trained))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs in which heads learn their few rows by heart, over bases that know them."""
    where = tmp_path_factory.mktemp("medusa")
    found: dict[str, Path] = {}
    for family in ("llama", "gpt2", "mistral"):
        base = tiny.folder(where / family, family)
        quick: dict[str, Any] = {"optimizer": {"adamw": {"lr": 1e-2}}}
        knows = tiny.trained(base, where, method="full", output=f"{family}-base", train={"epochs": 8}, **quick)
        options = {"vocabulary": "own", "heads": 3}
        run = tiny.trained(
            knows.folder.model,
            where,
            method={"medusa": options},
            output=f"{family}-heads",
            train={"epochs": 12},
            validation={"fraction": 0.2},
            **quick,
        )
        assert {"head_1", "head_2", "head_3"} <= tiny.figures(run)[-1].keys()
        assert {"head_1", "head_2", "head_3"} <= tiny.figures(run, "validate")[-1].keys()
        found[family] = run.folder.path
    return found


def engines(path: Path, **options: Any) -> tuple[Any, MedusaAnswers]:
    opened = open_model(ModelSpec(path=str(path), dtype="float32", device="cpu"))
    plain = Local(batch_tokens=1).bind(opened.trained, opened.codec)
    return plain, Medusa(**options).bind(opened.trained, opened.codec)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
class TestAnswers:
    @pytest.mark.parametrize("tokens", [1, 2, 3, 40])
    @pytest.mark.parametrize("heads", [1, None])
    def test_are_those_of_plain_greedy_generation(
        self, family: str, tokens: int, heads: int | None, runs: dict[str, Path]
    ) -> None:
        plain, drafted = engines(runs[family], heads=heads)
        sampling = Sampling(max_tokens=tokens)
        assert list(drafted.answer(ASKS, sampling)) == list(plain.answer(ASKS, sampling))
        if tokens == 40:
            assert drafted.mean_accepted > 1.05
            most = 1 + (heads or 3)
            assert drafted.mean_accepted <= most

    def test_end_at_stop_texts_and_are_streamed(self, family: str, runs: dict[str, Path]) -> None:
        plain, drafted = engines(runs[family])
        whole = next(iter(plain.answer(ASKS[1:2], Sampling(max_tokens=40)))).text
        for stop in (whole[3:5], whole[7:8], "nothing of the kind"):
            sampling = Sampling(max_tokens=40, stop=(stop,))
            assert list(drafted.answer(ASKS, sampling)) == list(plain.answer(ASKS, sampling))
            assert "".join(drafted.stream(ASKS[1], sampling)) == "".join(plain.stream(ASKS[1], sampling))


def test_untrained_heads_change_no_answer() -> None:
    """The worst drafts cost time, and nothing else."""
    found = []
    for seed in range(3):
        model = tiny.model(seed=seed)
        trained = method_of("medusa", vocabulary="own").apply(model).eval()
        shake(trained, 1.0)
        drafted = MedusaAnswers(trained, codec(), 3)
        prompt = TOKENS[0, : 5 + seed].tolist()
        expected = model.generate(
            input_ids=torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        stream = drafted._tokens(Job(0, tuple(prompt), 20))
        with torch.no_grad():
            found.append(list(stream))
        ends = codec().end_tokens
        wanted: list[int] = expected[0, len(prompt) :].tolist()
        stop = next((place + 1 for place, token in enumerate(wanted) if token in ends), 20)
        assert found[-1] == wanted[:stop]


def test_the_reader_may_leave(runs: dict[str, Path]) -> None:
    _, drafted = engines(runs["llama"])
    stream = drafted.stream(ASKS[1], Sampling(max_tokens=50))
    next(stream, None)
    stream.close()
    assert list(stream) == []


def test_chat_drafts_greedy_answers_only(runs: dict[str, Path]) -> None:
    spec = ModelSpec(path=str(runs["llama"]), dtype="float32", device="cpu")
    base, tuned = chat._speakers(spec, True, Local(), Sampling(temperature=0))
    assert not isinstance(base.answers, MedusaAnswers)
    assert isinstance(tuned.answers, MedusaAnswers)
    assert tuned.answers.told == ""
    said = "".join(tuned.answers.stream(ASKS[1], Sampling(max_tokens=20)))
    assert said == "".join(base.answers.stream(ASKS[1], Sampling(max_tokens=20)))
    assert f"{tuned.answers.mean_accepted:.2f} tokens a pass" in tuned.answers.told
    assert not isinstance(chat._speakers(spec, False, Local(), Sampling(temperature=1))[0].answers, MedusaAnswers)


class TestRefusals:
    @pytest.mark.parametrize("options", [{"temperature": 0.7}, {"repetition_penalty": 1.2}])
    def test_answers_that_are_not_greedy(self, options: dict[str, Any], runs: dict[str, Path]) -> None:
        _, drafted = engines(runs["llama"])
        for ask in (drafted.answer, drafted.stream):
            with pytest.raises(Problem, match="use the engine local"):
                ask(ASKS[:1] if ask == drafted.answer else ASKS[0], Sampling(**options))  # type: ignore[operator]

    def test_models_without_heads_or_with_too_few(self, runs: dict[str, Path], tmp_path: Path) -> None:
        with pytest.raises(Problem, match="is 4, and the model has 3"):
            engines(runs["llama"], heads=4)
        base = tiny.folder(tmp_path / "base")
        with pytest.raises(Problem, match="no Medusa heads"):
            Medusa().open(ModelSpec(path=str(base), dtype="float32", device="cpu"))

    def test_rows_with_several_answers(self, tmp_path: Path) -> None:
        base = tiny.folder(tmp_path / "base")
        with pytest.raises(Problem, match="several answers to choose between"):
            tiny.trained(base, tmp_path, "dpo", method="medusa")
        with pytest.raises(Problem, match="has no head for them"):
            tiny.trained(base, tmp_path, "reward", method="medusa", output="reward")

    def test_bases_that_cannot(self) -> None:
        with pytest.raises(Problem, match="an encoder and a decoder"):
            method_of("medusa").apply(t5())


def test_the_accuracy_of_many_targets_is_measured_on_all_of_them_in_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(medusa, "SAMPLE", 4)
    model = tiny.model()
    method = method_of("medusa", heads=1)
    trained = method.apply(model)
    seen: list[int] = []
    heads = heads_of(trained)
    own = heads.guesses

    def counted(model: Any, states: Any, number: int) -> Any:
        seen.append(len(states))
        return own(model, states, number)

    monkeypatch.setattr(heads, "guesses", counted)
    policy = policy_of(model, trained)
    for training in (True, False):
        method.loss(Policy(model, forest=policy.forest, trained=trained.train(training)), tiny.forest(), NextToken())
    assert seen[0] == 4 < seen[1]
