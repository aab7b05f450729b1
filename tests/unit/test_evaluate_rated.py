"""Rated answers: AUC and its parts against plain counting, and a model's numbers against one row at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from tunesmith.core.problem import Problem
from tunesmith.core.run import DataSpec
from tunesmith.evaluate.rated import LIKELIHOOD, REWARD, SCORE, answer_logprobs, auc, parts, told_apart
from tunesmith.evaluate.scoring import Scorer
from tunesmith.evaluate.verb import evaluate
from tunesmith.models.policy import Policy

GOOD = np.array([True, False, True, True, False, False, True])
VALUES = np.array([0.5, 0.5, 2.0, -1.0, -1.0, 1.0, 3.0])


def counted(values: np.ndarray, good: np.ndarray) -> np.ndarray:
    """[good, bad] whether each good value is above each bad one; a half where they are equal."""
    return np.array([[(a > b) + (a == b) / 2 for b in values[~good]] for a in values[good]])


def test_auc_is_the_share_of_pairs_in_order() -> None:
    assert auc(VALUES, GOOD) == pytest.approx(counted(VALUES, GOOD).mean())
    assert auc(np.arange(7.0), np.arange(7) > 3) == 1.0
    assert auc(np.zeros(7), GOOD) == 0.5
    assert math.isnan(auc(VALUES, np.ones(7, bool)))


def test_the_parts_of_rows_have_the_auc_as_mean_and_delongs_variance() -> None:
    found, pairs = parts(VALUES, GOOD), counted(VALUES, GOOD)
    assert found.mean() == pytest.approx(pairs.mean())
    delong = pairs.mean(axis=1).var() / GOOD.sum() + pairs.mean(axis=0).var() / (~GOOD).sum()
    assert found.var() / len(found) == pytest.approx(delong)


def test_what_is_told_of_values() -> None:
    outcome = told_apart({LIKELIHOOD: -VALUES, REWARD: VALUES}, GOOD)
    assert [measure.name for measure in outcome.measures] == [
        "AUC by likelihood per token",
        "AUC by reward against the base",
        "accuracy at reward against the base 0",
    ]
    first, second, accuracy = (measure.figure for measure in outcome.measures)
    assert first.value == pytest.approx(1 - second.value)
    assert second.low < second.value < second.high
    assert accuracy.value == pytest.approx(4 / 7)
    assert outcome.scores.tolist() == np.where(GOOD, VALUES, -VALUES).tolist()


def test_answers_are_scored_as_one_by_one() -> None:
    model, rows = tiny.model(), tiny.rated_rows(4)
    found = answer_logprobs(Scorer(Policy(model, forest=False)), rows)
    for row, value in zip(rows, found, strict=True):
        ids = [*row.trunk.tokens.tolist(), *row.branches[0].tokens.tolist()]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = sum(logprobs[place - 1, ids[place]].item() for place in range(len(row.trunk), len(ids)))
        assert value == pytest.approx(expected, abs=1e-3)


def measured(results: Any) -> dict[str, set[str]]:
    """The columns of each measure."""
    return {row.name: set(row.figures) for section in results.sections for row in section.table}


def test_a_run_of_kto_is_measured_beside_its_base(tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    lr = {"adamw": {"lr": 2e-2}}
    run = tiny.trained(base, tmp_path, "kto", method="lora", optimizer=lr, train={"epochs": 4})
    rows = tiny.rows_file(tmp_path / "rated.jsonl", tiny.RATED)
    results = evaluate(str(run.folder.path), [DataSpec(path=str(rows))])
    assert measured(results) == {
        f"AUC by {LIKELIHOOD}": {"base", "tuned"},
        f"AUC by {REWARD}": {"tuned"},
        f"accuracy at {REWARD} 0": {"tuned"},
    }
    (section,) = results.sections
    assert section.table[1].figures["tuned"].value > 0.9
    one_sided = tiny.rows_file(tmp_path / "good.jsonl", [row for row in tiny.RATED if row["label"]])
    with pytest.raises(Problem, match="all 9 rated answers are good"):
        evaluate(str(run.folder.path), [DataSpec(path=str(one_sided))])


def test_a_reward_model_is_measured_on_rated_answers(tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    run = tiny.trained(base, tmp_path, "reward", method="lora")
    rows = tiny.rows_file(tmp_path / "rated.jsonl", tiny.RATED)
    results = evaluate(str(run.folder.path), [DataSpec(path=str(rows))])
    assert measured(results) == {f"AUC by {SCORE}": {"tuned"}, f"accuracy at {SCORE} 0": {"tuned"}}
