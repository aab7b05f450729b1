"""The reward of a model against transformers' own forward pass over transformers' own rendering."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from made_codecs import oracle
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from tunesmith.core.plugins import build
from tunesmith.core.problem import Problem
from tunesmith.core.records import Message
from tunesmith.models.heads import HeadSpec
from tunesmith.rewards import Asked, Reward

FIRST = (Message("system", "Be kind."), Message("user", "what is salt?"))
SECOND = (Message("user", "hi"), Message("assistant", "hello"), Message("user", "what is rain?"))
ASKED = [
    Asked(messages, text)
    for messages in (FIRST, SECOND)
    for text in (
        "a mineral that tastes",
        "I do not know.",
        "",
        "你好",
        "a mineral that tastes, and a longer answer to it",
    )
]


def judge_of(path: Path, **options: Any) -> Any:
    reward = build("reward", {"model": {"path": str(path), "dtype": "float32", **options}})
    assert isinstance(reward, Reward)
    return reward.open()


def theirs(model: Any, asked: list[Asked], longest: int | None = None) -> list[float]:
    """transformers' scores: each answer alone, rendered with its prompt up to the closing token, no padding."""
    tokenizer, out = oracle(), []
    for one in asked:
        turns = [message.plain() for message in (*one.messages, Message("assistant", one.text))]
        text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip("\n")
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[:, :longest]
        with torch.no_grad():
            out.append(float(model(input_ids=ids).logits[0, 0]))
    return out


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("batch_tokens", [1, 120, 8192])
def test_scores_are_transformers_own(family: str, batch_tokens: int, tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "scorer", family, head="score")
    expected = theirs(AutoModelForSequenceClassification.from_pretrained(folder), ASKED)
    assert judge_of(folder, batch_tokens=batch_tokens)(ASKED) == pytest.approx(expected, abs=2e-5, rel=2e-5)
    assert len({round(value, 4) for value in expected}) == len(expected)


def test_a_run_of_the_objective_reward_is_a_reward_model(tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    result = tiny.trained(base, tmp_path, "reward", optimizer={"adamw": {"lr": 1e-2}}, train={"epochs": 3})
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    expected = theirs(PeftModel.from_pretrained(plain, str(result.folder.model)).eval(), ASKED)
    judge = judge_of(Path(result.folder.path))
    assert judge(ASKED) == pytest.approx(expected, abs=2e-5, rel=2e-5)
    pairs = [
        [Asked((Message("user", row["instruction"]),), row[side]) for side in ("chosen", "rejected")]
        for row in tiny.PAIRS
    ]
    chosen, rejected = (judge([pair[side] for pair in pairs]) for side in (0, 1))
    assert sum(good > bad for good, bad in zip(chosen, rejected, strict=True)) > 0.9 * len(pairs)


def test_no_gradient_and_no_dropout(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "scorer", head="score", attention_dropout=0.5)
    judge = judge_of(folder)
    with torch.enable_grad():
        assert judge(ASKED) == judge(ASKED)


def test_an_answer_that_goes_on_is_cut_and_a_prompt_never(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "scorer", head="score")
    long = Asked(FIRST, "salt " * 80)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert judge_of(folder)([long]) == pytest.approx(theirs(model, [long], 256), rel=1e-4)
    assert judge_of(folder, max_tokens=100)([long]) == pytest.approx(theirs(model, [long], 100), rel=1e-4)
    with pytest.raises(Problem, match=r"reward model: answer 2 \(to 'salt salt .* cannot be scored by .*too long"):
        judge_of(folder)([long, Asked((Message("user", "salt " * 80),), "a")])


def test_what_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    writer = tiny.folder(tmp_path / "writer")
    with pytest.raises(Problem, match=r"writes answers and scores none.*Train a reward model"):
        judge_of(writer)
    classifier = tiny.folder(tmp_path / "classifier", head=HeadSpec("score", ("good", "bad", "odd")))
    with pytest.raises(Problem, match=r"gives 3 numbers \(good, bad, odd\), and a reward model gives one"):
        judge_of(classifier)
    with pytest.raises(Problem, match="there is no such folder"):
        judge_of(tmp_path / "none")
