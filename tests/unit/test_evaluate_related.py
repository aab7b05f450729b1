"""Texts beside each other: correlations and ranks against scipy and scikit-learn, retrieval against a plain loop."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import ndcg_score

from tunesmith.core.problem import Problem
from tunesmith.core.rows import Piece, TokenRow
from tunesmith.core.run import DataSpec
from tunesmith.evaluate.related import correlated, everywhere, ndcg, ranked
from tunesmith.evaluate.settings import Settings
from tunesmith.evaluate.verb import evaluate
from tunesmith.merge.fold import fold
from tunesmith.models.sentences import save_embedder, save_reranker, saved_pooling
from tunesmith.train.verb import Result


def draws(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).normal(size=shape)


def test_correlations_are_scipys() -> None:
    found, grades = draws(1, 40), np.round(draws(2, 40) * 2) / 2  # grades with ties
    outcome = correlated(found, grades)
    spearman, pearson = outcome.measures
    assert spearman.figure.value == pytest.approx(spearmanr(found, grades).statistic, abs=1e-12)
    assert pearson.figure.value == pytest.approx(pearsonr(found, grades).statistic, abs=1e-12)
    for measure in outcome.measures:
        assert measure.gains is not None
        assert measure.gains.mean() == pytest.approx(measure.figure.value, abs=1e-12)
        assert measure.figure.low < measure.figure.value < measure.figure.high
    assert outcome.scores.shape == (40,)


def test_correlation_with_what_does_not_vary_is_none() -> None:
    assert [measure.figure.value for measure in correlated(np.ones(5), np.arange(5.0)).measures] == [0, 0]


def test_ndcg_is_scikit_learns() -> None:
    for seed in range(20):
        found, grades = draws(seed, 14), np.abs(np.round(draws(seed + 99, 14)))
        assert ndcg(found, grades) == pytest.approx(ndcg_score([grades], [found], k=10), abs=1e-12)


def test_ranks_by_hand_and_equal_scores_count_against_the_model() -> None:
    found = [np.array([0.9, 0.5, 0.1]), np.array([0.2, 0.2]), np.array([0.3, 0.6, 0.7, 0.1])]
    grades = [np.array([1.0, 0, 0]), np.array([1.0, 0]), np.array([0.0, 1, 0, 1])]
    first, reciprocal, gained = ranked(found, grades, "of all")
    assert first.figure.value == pytest.approx(1 / 3)
    assert reciprocal.figure.value == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    third = (1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3))
    assert gained.figure.value == pytest.approx((1 + 1 / math.log2(3) + third) / 3)
    assert ranked([], [], "of all") == ()


def row(said: str, *grades: float) -> TokenRow:
    """A row whose texts are one letter each."""
    pieces = tuple(Piece(np.array([ord(letter)], np.int32), np.zeros(1, np.float32)) for letter in said)
    nothing = Piece(np.zeros(0, np.int32), np.zeros(0, np.float32))
    return TokenRow(nothing, pieces, values=(0.0, *grades))


def test_retrieval_is_over_every_text_once() -> None:
    rows = [row("abc", 1, 0), row("dba", 0, 1), row("ae", 1), row("fg", 1)]
    known = {letter: draws(ord(letter), 4) for letter in "abcdefg"}
    vectors = [np.stack([known[chr(piece.tokens[0])] for piece in each.branches]) for each in rows]
    found, grades = everywhere(rows, vectors)
    corpus = "bcaeg"
    near = {"a": "be", "d": "a", "f": "g"}
    for each, scores, right in zip(rows, found, grades, strict=True):
        query = chr(each.branches[0].tokens[0])
        texts = [letter for letter in corpus if letter != query]
        assert scores == pytest.approx([known[query] @ known[letter] for letter in texts])
        assert right.tolist() == [float(letter in near[query]) for letter in texts]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base"))


SETTINGS: dict[str, Any] = {
    "optimizer": {"adamw": {"lr": 1e-2}},
    "train": {"steps": 3, "keep": "last"},
    "validation": {"fraction": 0.4},
}


@pytest.fixture(scope="module")
def embedded(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    where = tmp_path_factory.mktemp("embedded")
    return tiny.trained(base, where, {"embed": {"pooling": "last"}}, method={"lora": {"start": "gaussian"}}, **SETTINGS)


@pytest.fixture(scope="module")
def reranked(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return tiny.trained(base, tmp_path_factory.mktemp("reranked"), "rerank", method="full", **SETTINGS)


def scored(where: Path) -> list[DataSpec]:
    rows = [
        {"sentence1": row["instruction"], "sentence2": row["output"], "score": number % 5}
        for number, row in enumerate(tiny.CHATS)
    ]
    return [DataSpec(path=str(tiny.rows_file(where / "scored.jsonl", rows)))]


def table(results: Any) -> dict[str, dict[str, float]]:
    return {
        row.name: {column: figure.value for column, figure in row.figures.items()}
        for section in results.sections
        for row in section.table
    }


NEAR = [f"{name} of {of}" for of in ("its own texts", "all texts") for name in ("accuracy@1", "MRR", "NDCG@10")]


def test_an_embedder_beside_its_base_on_its_validation_rows(embedded: Result) -> None:
    found = table(evaluate(str(embedded.folder.path)))
    assert list(found) == NEAR
    assert all(set(columns) == {"base", "tuned"} for columns in found.values())
    assert all(0 <= value <= 1 for columns in found.values() for value in columns.values())


def test_scored_pairs_of_an_embedder_and_of_what_it_is_folded_into(embedded: Result, tmp_path: Path) -> None:
    """The folder alone tells how vectors are made; the figures are those of the run."""
    folded = fold(str(embedded.folder.path), tmp_path / "folded").folder
    assert saved_pooling(folded) == "last"
    results = [evaluate(str(where), scored(tmp_path)) for where in (embedded.folder.path, folded)]
    run, alone = (table(found)["Spearman's correlation"] for found in results)
    assert set(run) == {"base", "tuned"}
    assert run["base"] != run["tuned"]
    assert alone == {"model": pytest.approx(run["tuned"], abs=1e-9)}
    best = results[0].sections[0].best[0]
    assert "grade" in best.answers["tuned"]
    assert best.case.prompt.startswith("what is")


def test_a_full_run_is_measured_beside_its_base(base: Path, tmp_path: Path) -> None:
    result = tiny.trained(base, tmp_path, "embed", method="full", **SETTINGS)
    found = table(evaluate(str(result.folder.path), scored(tmp_path)))["Spearman's correlation"]
    assert set(found) == {"base", "tuned"}
    assert found["base"] != found["tuned"]


def test_a_reranker_ranks_the_texts_of_each_query(reranked: Result, tmp_path: Path) -> None:
    found = table(evaluate(str(reranked.folder.path)))
    assert list(found) == NEAR[:3]
    assert all(set(columns) == {"tuned"} for columns in found.values())
    pairs = table(evaluate(str(reranked.folder.path), scored(tmp_path)))
    assert list(pairs) == ["Spearman's correlation", "Pearson's correlation"]


def test_rows_of_another_kind_are_refused(embedded: Result, tmp_path: Path) -> None:
    data = [DataSpec(path=str(tiny.rows_file(tmp_path / "chats.jsonl", tiny.CHATS)))]
    with pytest.raises(Problem, match="is not measured on Chat rows"):
        evaluate(str(embedded.folder.path), data, Settings())


class TestLayout:
    @pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
    def test_what_is_written_is_read(self, pooling: Any, tmp_path: Path) -> None:
        save_embedder(tmp_path, pooling, 32)
        assert saved_pooling(tmp_path) == pooling
        assert json.loads((tmp_path / "1_Pooling" / "config.json").read_text())["word_embedding_dimension"] == 32

    def test_a_folder_without_vectors_has_no_pooling(self, tmp_path: Path) -> None:
        assert saved_pooling(tmp_path) is None
        save_reranker(tmp_path)
        assert saved_pooling(tmp_path) is None

    @pytest.mark.parametrize(
        "config", [{"pooling_mode": "max"}, {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, {}]
    )
    def test_other_ways_are_known_as_such(self, config: dict[str, Any], tmp_path: Path) -> None:
        save_embedder(tmp_path, "mean", 32)
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
        assert saved_pooling(tmp_path) == "other"

    def test_layers_behind_the_pooling_are_another_way(self, tmp_path: Path) -> None:
        save_embedder(tmp_path, "mean", 32)
        parts = json.loads((tmp_path / "modules.json").read_text())
        parts[2]["type"] = "sentence_transformers.models.Dense"
        (tmp_path / "modules.json").write_text(json.dumps(parts))
        assert saved_pooling(tmp_path) == "other"

    @pytest.mark.parametrize("text", ["{", '{"a": 1}', "[1]"])
    def test_a_damaged_list_of_modules_is_refused(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "modules.json").write_text(text)
        with pytest.raises(Problem, match=r"modules\.json"):
            saved_pooling(tmp_path)
