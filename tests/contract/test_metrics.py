"""Every metric by the folder listing, and each kept library called directly beside it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from tunesmith.core.plugins import build, names
from tunesmith.core.problem import Problem
from tunesmith.evaluate.metrics import Metric

ENGLISH = (
    ["the cat sat on the mat", "He isn't here, is he?", "It rained all day long in the north.", "", "a b c d"],
    ["the cat sat on a mat", "He isn't here.", "It rained all day in the far north.", "something", "a b c d"],
)
CHINESE = (
    ["今天天气很好,我们去公园。", "他不在这里。", "北方下了一整天的雨。"],
    ["今天天气很好,我们去了公园。", "他不在。", "遥远的北方下了一天的雨。"],
)
MINE = "def score(answer, reference):\n    return 1.0 if answer == reference else len(answer) / 100\n"


@pytest.fixture(params=names("metric"))
def metric(request: pytest.FixtureRequest, tmp_path: Path) -> Metric:
    (tmp_path / "mine.py").write_text(MINE)
    options = {"path": str(tmp_path / "mine.py")} if request.param == "python" else None
    found = build("metric", {request.param: options})
    assert isinstance(found, Metric)
    return found


@pytest.mark.parametrize(("answers", "references"), [ENGLISH, CHINESE])
def test_a_metric_scores_each_answer_and_all(metric: Metric, answers: list[str], references: list[str]) -> None:
    scores = metric.score(answers, references)
    assert len(scores) == len(answers)
    assert all(math.isfinite(score) for score in scores)
    figure = metric.figure(answers, references)
    assert figure.n == len(answers)
    assert figure.low <= figure.value <= figure.high
    assert metric.figure(answers, references) == figure
    assert metric.label(references)


@pytest.mark.parametrize("references", [ENGLISH[1], CHINESE[1]])
def test_the_reference_itself_is_the_best_answer(metric: Metric, references: list[str]) -> None:
    best = metric.score(references, references)
    shuffled = metric.score(references[1:] + references[:1], references)
    assert len({round(score, 6) for score in best}) == 1
    assert all(one > other for one, other in zip(best, shuffled, strict=True))


def test_no_answers_have_no_figure(metric: Metric) -> None:
    figure = metric.figure([], [])
    assert figure.n == 0
    assert math.isnan(figure.value)


@pytest.mark.parametrize(("data", "tokenizer"), [(ENGLISH, "13a"), (CHINESE, "zh")])
def test_bleu_is_sacrebleu(data: tuple[list[str], list[str]], tokenizer: str) -> None:
    answers, references = data
    metric = build("metric", "bleu")
    assert isinstance(metric, Metric)
    direct = BLEU(tokenize=tokenizer).corpus_score(answers, [references]).score
    assert metric.figure(answers, references).value == pytest.approx(direct, abs=1e-9)
    assert metric.label(references) == f"bleu (tokens: {tokenizer})"
    sentence = BLEU(tokenize=tokenizer, effective_order=True).sentence_score(answers[0], [references[0]]).score
    assert metric.score(answers, references)[0] == pytest.approx(sentence, abs=1e-9)


@pytest.mark.parametrize("data", [ENGLISH, CHINESE])
@pytest.mark.parametrize("words", [0, 2])
def test_chrf_is_sacrebleu(data: tuple[list[str], list[str]], words: int) -> None:
    answers, references = data
    metric = build("metric", {"chrf": {"word_order": words}})
    assert isinstance(metric, Metric)
    direct = CHRF(word_order=words).corpus_score(answers, [references]).score
    assert metric.figure(answers, references).value == pytest.approx(direct, abs=1e-9)


@pytest.mark.parametrize("variant", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
def test_rouge_is_rouge_score(variant: str) -> None:
    metric = build("metric", {"rouge": {"variant": variant}})
    assert isinstance(metric, Metric)
    direct = [RougeScorer([variant]).score(r, a)[variant].fmeasure for a, r in zip(*ENGLISH, strict=True)]
    assert metric.score(*ENGLISH) == pytest.approx(direct, abs=1e-12)


def test_rouge_counts_chinese_characters_as_words() -> None:
    metric = build("metric", {"rouge": {"variant": "rouge1"}})
    assert isinstance(metric, Metric)
    spaced = [[" ".join(text) for text in side] for side in (["ab12c"], ["ab9c"])]
    direct = RougeScorer(["rouge1"]).score(spaced[1][0], spaced[0][0])["rouge1"].fmeasure
    chinese = [
        [text.translate(str.maketrans("abc129", "天地人大小中")) for text in side] for side in (["ab12c"], ["ab9c"])
    ]
    assert metric.score(*chinese) == pytest.approx([direct])
    assert RougeScorer(["rouge1"]).score(chinese[1][0], chinese[0][0])["rouge1"].fmeasure == 0


@pytest.mark.parametrize(
    ("text", "tokenizer"),
    [
        ("日本語のテキストです", "char"),
        ("한국어 문장입니다", "char"),
        ("Ein Satz.", "13a"),
        ("我用 Python 写程序", "zh"),
    ],
)
def test_the_tokenizer_follows_the_language(text: str, tokenizer: str) -> None:
    metric = build("metric", "bleu")
    assert isinstance(metric, Metric)
    assert tokenizer in metric.label([text])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "there is no such file"),
        ("def scor(a, b):\n    return 1.0\n", "has no function 'score'. Did you mean 'scor'"),
        ("x = (\n", r"mine.py:1: cannot be loaded \(SyntaxError"),
        ("import nothing_of_that_name\n", r"mine.py:1: cannot be loaded \(ModuleNotFoundError"),
        ("def score(a, b):\n    return 'good'\n", "gave 'good' for answer 1"),
        ("def score(a, b):\n    return None\n", "gave None for answer 1"),
        ("def score(a, b):\n    return float('nan')\n", "gave nan for answer 1"),
        ("def score(a, b):\n    return 1 / len(a)\n", r"mine.py:2: score failed on answer 4 \(ZeroDivisionError"),
        ("def score(a):\n    return 1.0\n", r"score failed on answer 1 \(TypeError"),
    ],
)
def test_faults_of_a_metric_of_ones_own(tmp_path: Path, text: str | None, fault: str) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    metric = build("metric", {"python": {"path": str(file)}})
    assert isinstance(metric, Metric)
    with pytest.raises(Problem, match=fault):
        metric.score(*ENGLISH)


def test_exact_match_looks_past_white_space_only() -> None:
    metric, loose = build("metric", "exact_match"), build("metric", {"exact_match": {"case": "ignored"}})
    assert isinstance(metric, Metric) and isinstance(loose, Metric)
    answers, references = [" a  b\n", "A b", "ab"], ["a b", "a b", "a b"]
    assert metric.score(answers, references) == [1, 0, 0]
    assert loose.score(answers, references) == [1, 1, 0]
    assert metric.figure(answers, references).value == pytest.approx(1 / 3)
