"""What is measured of a model against plain transformers, one row at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_benches import scorer, tiny_codec, tiny_model
from made_codecs import chat
from transformers import LlamaConfig, LlamaForSequenceClassification

from tunesmith.core.problem import Problem
from tunesmith.core.records import Chat, Message, Preference, Text
from tunesmith.core.rows import TokenRow
from tunesmith.data.encode import Rules, encode
from tunesmith.data.report import Rejected
from tunesmith.evaluate.baselines import LINEAR, MAJORITY, Linear, baselines
from tunesmith.evaluate.labels import LabelRows, choose, label_row, label_set
from tunesmith.evaluate.measure import perplexity
from tunesmith.evaluate.pairs import LIKELIHOOD, REWARD, by_likelihood, by_score, pair_logprobs
from tunesmith.evaluate.scoring import Scorer, learned_tokens
from tunesmith.models.policy import Policy

CHATS = [
    Chat(chat("hello", "the thing")),
    Chat(chat("one", "hello", "in the thing, a longer question", "你好,世界")),
    Chat(chat("the", "hello the thing and much more than that")),
]
TEXTS = [Text("hello the thing"), Text("a 你好"), Text("a much longer text than the others, to be padded")]


def rows_of(records: list[Chat] | list[Text] | list[Preference]) -> list[TokenRow]:
    out: list[TokenRow] = []
    for record in records:
        found = encode(record, tiny_codec(), Rules(type(record), 256))
        assert not isinstance(found, Rejected)
        out += found
    return out


@pytest.mark.parametrize("records", [CHATS, TEXTS])
@pytest.mark.parametrize("forest", [True, False])
def test_perplexity_is_that_of_a_padded_forward_with_shifted_labels(
    records: list[Chat] | list[Text], forest: bool
) -> None:
    model, codec, rows = tiny_model(), tiny_codec(), rows_of(records)
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.from_numpy(row.trunk.tokens.astype(np.int64))
        learned = row.trunk.weights > 0
        labels[number, : len(row)][learned] = ids[number, : len(row)][learned]
        mask[number, : len(row)] = 1
    with torch.no_grad():
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss.item()
    heavy = [replace(row, trunk=replace(row.trunk, weights=row.trunk.weights * 3)) for row in rows]
    found = perplexity(scorer(model, forest=forest), codec, heavy)
    ppl, bits = (measure.figure for measure in found.measures)
    assert ppl.value == pytest.approx(math.exp(loss), rel=1e-4)
    assert ppl.low <= ppl.value <= ppl.high
    tokens = int((labels != -100).sum())
    answers = [c.messages[n].content for c in CHATS for n in range(1, len(c.messages), 2)]
    size = len("".join(answers if records is CHATS else [text.text for text in TEXTS]).encode())
    if records is TEXTS:
        size -= sum(len(codec.decode([int(row.trunk.tokens[0])]).encode()) for row in rows)
    assert bits.value == pytest.approx(loss * tokens / math.log(2) / size, rel=1e-3)
    assert [learned_tokens(row) for row in rows] == [labels[n][labels[n] != -100].tolist() for n in range(len(rows))]


LABELS = ("bad", "good", "very good", "一般")


@pytest.mark.parametrize("forest", [True, False])
def test_labels_are_chosen_as_one_by_one(forest: bool) -> None:
    model, codec = tiny_model(), tiny_codec()
    asked = [
        Chat(chat(f"How was the {thing}?", label)) for thing, label in zip("abcdef", LABELS + LABELS[:2], strict=True)
    ]
    rows = [label_row(one, LABELS, codec, 256) for one in asked]
    assert all(isinstance(row, TokenRow) and len(row.branches) == len(LABELS) for row in rows)
    truth = np.array([LABELS.index(one.messages[-1].content) for one in asked])
    found = choose(scorer(model, forest=forest), LabelRows(tuple(rows), truth, LABELS))  # type: ignore[arg-type]

    expected: list[str] = []
    right: list[float] = []
    for one in asked:
        sums: list[float] = []
        for label in LABELS:
            prompt = codec.encode_chat(one.messages[:-1], (), True)
            ids = prompt + codec.encode_text(label) + [codec.end_tokens[0]]
            with torch.no_grad():
                logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            sums.append(sum(logprobs[at - 1, ids[at]].item() for at in range(len(prompt), len(ids))))
        expected.append(LABELS[int(np.argmax(sums))])
        powers = np.exp(np.array(sums) - max(sums))
        right.append(powers[LABELS.index(one.messages[-1].content)] / powers.sum())
    assert list(found.answers) == expected
    assert found.scores == pytest.approx(np.array(right), abs=1e-4)


def test_a_label_row_shares_its_prompt_once() -> None:
    codec = tiny_codec()
    row = label_row(CHATS[1], ("in", "ing"), codec, 256)
    assert isinstance(row, TokenRow)
    assert row.trunk.tokens.tolist() == codec.encode_chat(CHATS[1].messages[:-1], (), True)
    assert [codec.decode(branch.tokens.tolist(), special=True) for branch in row.branches] == [
        "in<|im_end|>",
        "ing<|im_end|>",
    ]
    assert isinstance(label_row(CHATS[1], ("in", "ing"), codec, 5), Rejected)


def test_label_sets_are_those_of_training() -> None:
    assert label_set(["b", "a", "b"], ["a"]) == ("a", "b")
    assert label_set([], ["b", "a"]) == ("a", "b")
    with pytest.raises(Problem, match=r"'c' \(2 rows\).*The labels of training: 'a', 'b'"):
        label_set(["a", "b"], ["a", "c", "c"])
    with pytest.raises(Problem, match="there are 65"):
        label_set([str(number) for number in range(65)], [])


PAIRS = [
    Preference((Message("user", f"ask {n}"),), (Message("assistant", good),), (Message("assistant", bad),))
    for n, (good, bad) in enumerate([("hello", "no thing at all"), ("the thing", "in"), ("a", "hello the thing")])
]


def test_pairs_are_ranked_as_one_by_one() -> None:
    model, base, rows = tiny_model(), tiny_model(1), rows_of(PAIRS)
    own, reference = (pair_logprobs(scorer(one), rows) for one in (model, base))
    found = by_likelihood(own, reference)
    codec = tiny_codec()
    for one, pair, other in zip(PAIRS, own, reference, strict=True):
        for answer, value, before in zip((one.chosen, one.rejected), pair, other, strict=True):
            prompt = codec.encode_chat(one.prompt, (), True)
            ids = prompt + codec.encode_text(answer[0].content) + [codec.end_tokens[0]]
            for network, wanted in ((model, value), (base, before)):
                with torch.no_grad():
                    logprobs = network(torch.tensor([ids])).logits[0].log_softmax(-1)
                total = sum(logprobs[at - 1, ids[at]].item() for at in range(len(prompt), len(ids)))
                assert wanted == pytest.approx(total, abs=1e-3)
    likelihood, reward = found.measures
    assert (likelihood.name, reward.name) == (LIKELIHOOD, REWARD)
    assert likelihood.figure.value == pytest.approx(np.mean([c > r for c, r in own]))
    margins = np.array([(c - r) - (d - s) for (c, r), (d, s) in zip(own, reference, strict=True)])
    assert reward.figure.value == pytest.approx((margins > 0).mean())
    assert found.scores == pytest.approx(margins)


def test_pairs_are_ranked_by_a_score_head() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tiny_codec().vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_labels=1, pad_token_id=0, initializer_range=0.5,
    )  # fmt: skip
    model, rows = LlamaForSequenceClassification(config).eval(), rows_of(PAIRS)
    found = by_score(Scorer(Policy(model, forest=False)), rows)
    expected: list[float] = []
    for row in rows:
        ids = [torch.tensor([[*row.trunk.tokens, *branch.tokens]]) for branch in row.branches]
        with torch.no_grad():
            chosen, rejected = (model(one).logits.item() for one in ids)
        expected.append(chosen - rejected)
    assert found.scores == pytest.approx(np.array(expected), abs=1e-4)


def test_baselines_learn_what_is_easy() -> None:
    training = [(f"the food was {word} number {n}", word) for n in range(30) for word in ("good", "awful")]
    training += [("plain", "good")]
    texts = ["really good food", "an awful evening", "good", "awful"]
    found = baselines(training, texts, np.array([1, 0, 1, 0]), ("awful", "good"))
    assert found[LINEAR].measures[0].figure.value == 1.0
    assert found[LINEAR].answers == ("good", "awful", "good", "awful")
    assert found[MAJORITY].measures[0].figure.value == 0.5
    assert set(found[MAJORITY].answers) == {"good"}
    alone = baselines([("a", "good")], texts, np.array([1, 0, 1, 0]), ("awful", "good"))
    assert set(alone) == {MAJORITY}


def test_the_linear_model_says_how_sure_it_is() -> None:
    training = [(f"the food was {word} number {n}", word) for n in range(30) for word in ("good", "awful")]
    texts = ["good", "awful", "neither"]
    linear = Linear(training, {"good": 1, "awful": 0})
    sure = linear.probabilities(texts)
    assert sure.sum(axis=1) == pytest.approx([1, 1, 1])
    assert sure[0, 1] > 0.9 and sure[1, 0] > 0.9 > sure[2].max()
    assert linear.chosen(texts).tolist() == sure.argmax(axis=1).tolist()
