"""Losses, gradients, vectors and scores against sentence-transformers: the same weights, the same texts, float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

from tunesmith.core.plugins import build
from tunesmith.core.records import Related
from tunesmith.core.run import ModelSpec, TrainSpec
from tunesmith.data.encode import Rules, encode
from tunesmith.generate.opened import Opened, open_model
from tunesmith.merge.fold import fold
from tunesmith.models.forest import Batch
from tunesmith.models.heads import HeadSpec
from tunesmith.models.planting import plant
from tunesmith.models.pooling import Pooling
from tunesmith.models.sentences import save_embedder, save_reranker, saved_pooling
from tunesmith.models.source import find, head_of
from tunesmith.objectives import Objective

sentence_transformers = pytest.importorskip("sentence_transformers")
from sentence_transformers import CrossEncoder, SentenceTransformer  # noqa: E402
from sentence_transformers.cross_encoder import losses as ranking  # noqa: E402
from sentence_transformers.sentence_transformer import losses  # noqa: E402

ASKED = [row["instruction"] for row in tiny.CHATS[:5]]
NEAR = [row["output"] for row in tiny.CHATS[:5]]
FAR = [row["output"] for row in tiny.CHATS[5:10]]
SCORES = [0.9, 0.1, 0.4, 0.4, 0.7]
LORA = {"lora": {"start": "gaussian", "dropout": 0.0}}


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that gives vectors: the mean over tokens."""
    folder = tiny.folder(tmp_path_factory.mktemp("embedder"), head=HeadSpec("states"))
    save_embedder(folder, "mean", 32)
    return folder


@pytest.fixture(scope="module", params=["llama", "bert"])
def reranker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that scores a query and a document."""
    folder = tiny.folder(tmp_path_factory.mktemp(request.param), request.param, head=HeadSpec("score"))
    save_reranker(folder, types=request.param == "bert")
    return folder


def opened(folder: Path) -> Opened:
    return open_model(ModelSpec(path=str(folder), dtype="float32"), head_of(find(str(folder))))


def objective_of(name: str, **options: Any) -> Objective:
    found = build("objective", {name: options})
    assert isinstance(found, Objective)
    return found


def batches(objective: Objective, codec: Any, records: Sequence[Related], cut: int) -> list[Batch]:
    """The rows of records in micro-batches of `cut`."""
    rules = objective.rules(TrainSpec(max_tokens=200))
    rows = []
    for record in records:
        found = encode(record, codec, rules)
        assert isinstance(found, list)
        rows += found
    return [plant(rows[start : start + cut]) for start in range(0, len(rows), cut)]


def ours(
    objective: Objective, folder: Path, records: Sequence[Related], cut: int = 2
) -> tuple[float, dict[str, Tensor]]:
    """The loss of a step as the loop computes it, and its gradients."""
    found = opened(folder)
    policy = found.policy()
    (group,) = objective.round(policy, batches(objective, found.codec, records, cut), 0).groups
    count = sum(objective.count(batch) for batch in group)
    total = 0.0
    for batch in group:
        loss = objective.loss(policy, batch)[0] / count
        loss.backward()
        total += float(loss.detach())
    return total, gradients(found.model)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def theirs(model: Any, loss: nn.Module, columns: Sequence[Sequence[Any]], labels: Any = None) -> tuple[float, Any]:
    """Their loss over columns of texts, and its gradients."""
    inputs: Any = columns if isinstance(model, CrossEncoder) else [model.preprocess(list(texts)) for texts in columns]
    value = loss(inputs, labels)
    value.backward()
    return float(value.detach()), gradients(model[0].model)


def assert_same(ours: tuple[float, dict[str, Tensor]], theirs: tuple[float, dict[str, Tensor]]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=2e-6)
    assert ours[1].keys() == theirs[1].keys()
    for name, value in ours[1].items():
        assert float((value - theirs[1][name]).abs().max()) <= 2e-4 * float(theirs[1][name].abs().max()) + 1e-7, name


def triplets() -> list[Related]:
    return [Related(query, (near, far), (1.0, 0.0)) for query, near, far in zip(ASKED, NEAR, FAR, strict=True)]


def pairs() -> list[Related]:
    return [Related(query, (near,), (grade,)) for query, near, grade in zip(ASKED, NEAR, SCORES, strict=True)]


def model_of(folder: Path) -> Any:
    return SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("dimensions", [(), (16, 8)])
def test_contrast(both: bool, dimensions: tuple[int, ...], embedder: Path) -> None:
    """Multiple negatives ranking with hard negatives, in one direction and symmetric, and Matryoshka over it."""
    own = objective_of(
        "embed",
        temperature=0.1,
        direction="both" if both else "forth",
        dimensions=dimensions,
        weights=[0.5] * len(dimensions),
    )
    model = model_of(embedder)
    ways: Any = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"} if both else {}
    loss: Any = losses.MultipleNegativesRankingLoss(model, scale=10.0, **ways)
    if dimensions:
        loss = losses.MatryoshkaLoss(model, loss, [32, *dimensions], [1.0] + [0.5] * len(dimensions))
    assert_same(ours(own, embedder, triplets()), theirs(model, loss, [ASKED, NEAR, FAR]))


def test_cosent(embedder: Path) -> None:
    model = model_of(embedder)
    loss = losses.CoSENTLoss(model, scale=20.0)
    assert_same(
        ours(objective_of("embed", form="cosent"), embedder, pairs()),
        theirs(model, loss, [ASKED, NEAR], torch.tensor(SCORES)),
    )


def test_cosine(embedder: Path) -> None:
    model = model_of(embedder)
    loss = losses.CosineSimilarityLoss(model)
    assert_same(
        ours(objective_of("embed", form="cosine"), embedder, pairs()),
        theirs(model, loss, [ASKED, NEAR], torch.tensor(SCORES)),
    )


def test_triplet(embedder: Path) -> None:
    model = model_of(embedder)
    loss = losses.TripletLoss(model, losses.TripletDistanceMetric.COSINE, triplet_margin=0.5)
    own = objective_of("embed", form="triplet", margin=0.5)
    assert_same(ours(own, embedder, triplets()), theirs(model, loss, [ASKED, NEAR, FAR]))


GRADES = [[2.0, 0.0, 1.0], [0.0, 3.0], [1.0, 0.0, 0.0], [1.0, 0.0], [0.0, 1.0, 1.0]]
DOCUMENTS = [[NEAR[n], FAR[n], NEAR[(n + 1) % 5]][: len(grades)] for n, grades in enumerate(GRADES)]


def listed() -> list[Related]:
    return [Related(q, tuple(d), tuple(g)) for q, d, g in zip(ASKED, DOCUMENTS, GRADES, strict=True)]


def crossed(folder: Path) -> Any:
    model = CrossEncoder(str(folder), device="cpu")
    return model.eval()


def test_listwise(reranker: Path) -> None:
    """ListNet takes the softmax of its labels as the target, and the softmax of log g is g's share of the sum."""
    model = crossed(reranker)
    labels = [torch.tensor(grades).log() for grades in GRADES]
    expected = theirs(model, ranking.ListNetLoss(model), [ASKED, DOCUMENTS], labels)
    assert_same(ours(objective_of("rerank"), reranker, listed()), expected)


def test_pairwise(reranker: Path) -> None:
    model = crossed(reranker)
    labels = [torch.tensor(grades) for grades in GRADES]
    expected = theirs(model, ranking.RankNetLoss(model, reduction_log="natural"), [ASKED, DOCUMENTS], labels)
    assert_same(ours(objective_of("rerank", form="pairwise"), reranker, listed()), expected)


def test_pointwise(reranker: Path) -> None:
    model = crossed(reranker)
    expected = theirs(model, ranking.BinaryCrossEntropyLoss(model), [ASKED, NEAR], torch.tensor(SCORES))
    assert_same(ours(objective_of("rerank", form="pointwise"), reranker, pairs()), expected)


def vectors(folder: Path, pooling: Pooling, texts: Sequence[str]) -> Any:
    """Our vectors of texts, from a saved folder."""
    found = opened(folder)
    rows = encode(
        Related(texts[0], tuple(texts[1:]), (0.0,) * (len(texts) - 1)), found.codec, Rules(Related, apart=True)
    )
    assert isinstance(rows, list)
    with torch.no_grad():
        return found.policy().embeddings(plant(rows), pooling).numpy()


@pytest.mark.parametrize(
    ("family", "pooling", "method"),
    [
        ("llama", "mean", "full"),
        ("llama", "last", LORA),
        ("qwen3", "mean", LORA),
        ("bert", "cls", "full"),
        ("bert", "mean", LORA),
    ],
)
def test_a_result_gives_the_same_vectors_there(family: str, pooling: Pooling, method: Any, tmp_path: Path) -> None:
    """As it was saved, and an adapter folded as well; the tokenizer's chat template is not put around texts."""
    base = tiny.folder(tmp_path / "base", family)
    settings: dict[str, Any] = {"method": method, "optimizer": {"adamw": {"lr": 1e-2}}, "train": {"steps": 3}}
    result = tiny.trained(base, tmp_path, {"embed": {"pooling": pooling}}, **settings)
    folders = [result.folder.model, *([fold(str(result.folder.path)).folder] if method != "full" else [])]
    before = vectors(result.folder.model, pooling, NEAR)
    for folder in folders:
        assert head_of(find(str(folder))).pooling == saved_pooling(folder) == pooling
        model = model_of(folder)
        assert np.abs(model.encode(NEAR) - vectors(folder, pooling, NEAR)).max() < 1e-5
        assert np.abs(model.encode(NEAR) - before).max() < 1e-5
        assert model.similarity_fn_name == "cosine"
    untouched = SentenceTransformer(str(base), device="cpu").encode(NEAR, normalize_embeddings=True)
    assert np.abs(before - untouched).max() > 1e-3


@pytest.mark.parametrize(("family", "method"), [("llama", "full"), ("llama", LORA), ("bert", "full"), ("bert", LORA)])
def test_a_result_gives_the_same_scores_there(family: str, method: Any, tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base", family)
    settings: dict[str, Any] = {"method": method, "optimizer": {"adamw": {"lr": 1e-2}}, "train": {"steps": 3}}
    result = tiny.trained(base, tmp_path, "rerank", **settings)
    found = opened(result.folder.model)
    rows = encode(Related(ASKED[0], tuple(NEAR), (0.0,) * 5), found.codec, Rules(Related))
    assert isinstance(rows, list)
    with torch.no_grad():
        own = found.policy().scores(plant(rows)).numpy()
    model = crossed(result.folder.model)
    said = model.predict([(ASKED[0], text) for text in NEAR], activation_fn=nn.Identity())
    assert np.abs(said - own).max() < 1e-5
    assert np.ptp(own) > 1e-4


def test_their_own_folders_are_read(embedder: Path, tmp_path: Path) -> None:
    """A folder that the library itself wrote says how vectors are made."""
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    for mode, ours in (("mean", "mean"), ("cls", "cls"), ("lasttoken", "last"), ("max", "other")):
        parts = [Transformer(str(embedder)), Pooling(32, pooling_mode=mode), Normalize()]
        SentenceTransformer(modules=parts, device="cpu").save(str(tmp_path / mode), create_model_card=False)
        assert saved_pooling(tmp_path / mode) == ours
        assert head_of(find(str(tmp_path / mode))) == HeadSpec("states", pooling=ours)
