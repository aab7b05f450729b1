"""Runs that learn labels, numbers and tags: from rows to a measured result."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from made_codecs import sides_oracle
from safetensors.torch import save_file
from transformers import LlamaConfig

from tunesmith.cli import __main__ as entry
from tunesmith.core.problem import Problem
from tunesmith.core.run import DataSpec, ModelSpec, read_run
from tunesmith.data.tokenizer import Codec
from tunesmith.evaluate.verb import evaluate
from tunesmith.generate.opened import open_model
from tunesmith.models.heads import HeadSpec
from tunesmith.models.load import context_of, load, padding
from tunesmith.models.source import find, head_of
from tunesmith.train.verb import Result, train

WORDS = {"good": ["fine", "lovely", "great", "nice"], "bad": ["awful", "poor", "dull", "grim"]}
JUDGED = [
    {"text": f"{subject} {verb} {word}", "label": label}
    for label, words in WORDS.items()
    for word in words
    for subject in ("the soup", "a walk", "this book", "rain")
    for verb in ("is", "was")
]
SEVERAL = [
    {"text": f"{subject} {colour} {size}", "labels": [label for label in (colour, size) if label in ("red", "big")]}
    for subject in ("a cat", "one hut", "the sea", "my bag", "his pen", "our car", "two men", "a key")
    for colour in ("red", "pale")
    for size in ("big", "thin")
]
RUNS: dict[str, tuple[str, Any, Any]] = {
    "classify": ("llama", "classify", JUDGED),
    "encoder": ("bert", {"classify": {"weights": "inverse"}}, JUDGED),
    "several": ("gpt2", {"classify": {"per_text": "several"}}, SEVERAL),
    "regress": ("llama", "regress", tiny.GRADED * 3),
    "tag": ("qwen3", "tag", tiny.TAGGED * 3),
}
FIRST = {"classify": "accuracy", "encoder": "accuracy", "several": "micro-F1", "tag": "F1 of names"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("bases")
    heads = {family: "lm" if family in tiny.FAMILIES else "states" for family, _, _ in RUNS.values()}
    return {family: tiny.folder(where / family, family, head=head) for family, head in heads.items()}


@pytest.fixture(scope="module")
def results(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    where = tmp_path_factory.mktemp("runs")
    out = {}
    for name, (family, objective, rows) in RUNS.items():
        options = {"optimizer": {"adamw": {"lr": 1e-2}}, "method": "full" if family == "bert" else "lora", "rows": rows}
        settings = {"steps": 30, "epochs": 20, "rows_per_step": 16, "keep": "last"}
        held = {"fraction": 0.25}
        out[name] = tiny.trained(bases[family], where / name, objective, train=settings, validation=held, **options)
    return out


@pytest.mark.parametrize("name", RUNS)
def test_it_learns(name: str, results: dict[str, Result]) -> None:
    first, *_, last = tiny.figures(results[name], "validate")
    assert last["loss"] < 0.6 * first["loss"]
    if name == "regress":
        assert last["error"] < 0.6 * first["error"]
    else:
        assert last["accuracy"] > first["accuracy"]
        assert last["accuracy"] > 0.8


@pytest.mark.parametrize("name", RUNS)
def test_labels_are_found_told_and_kept(name: str, results: dict[str, Result]) -> None:
    folder = results[name].folder
    run = read_run(folder.run_file)
    told = [event.values["text"] for event in tiny.events(results[name], "note")]
    found = {"several": ("big", "red"), "tag": ("B-LOC", "B-PER", "I-PER", "O"), "regress": ()}
    labels = found.get(name, ("bad", "good"))
    assert head_of(find(str(folder.path))).labels == labels
    assert getattr(run.objective, "labels", ()) == labels
    assert any(", ".join(labels) in text for text in told) or not labels
    if name == "encoder":
        assert run.objective.weights == (1.0, 1.0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", FIRST)
def test_it_is_measured(name: str, results: dict[str, Result]) -> None:
    found = evaluate(str(results[name].folder.path))
    (section,) = found.sections
    row = section.table[0]
    assert row.name == FIRST[name]
    assert set(row.figures) >= {"tuned"}
    assert row.figures["tuned"].value > 0.8
    if name in ("classify", "encoder"):
        assert set(row.figures) == {"tuned", "majority class", "linear n-grams"}
        assert section.confusion["tuned"].labels == ("bad", "good")


def test_numbers_are_measured(results: dict[str, Result]) -> None:
    (section,) = evaluate(str(results["regress"].folder.path)).sections
    assert [row.name for row in section.table] == [
        "mean absolute error",
        "Pearson's correlation",
        "Spearman's correlation",
    ]
    error = section.table[0].figures
    assert error["tuned"].value < 0.6 * error["mean of the training rows"].value


def test_rows_with_unknown_labels_are_told(results: dict[str, Result], tmp_path: Path) -> None:
    rows = [{"text": "the soup is fine", "label": "good"}, {"text": "the soup is odd", "label": "odd"}]
    data = tiny.rows_file(tmp_path / "rows.jsonl", rows)
    found = evaluate(str(results["classify"].folder.path), [DataSpec(path=str(data))])
    (section,) = found.sections
    assert section.table[0].figures["tuned"].n == 1
    assert any("unknown label" in note and "1 rows are not measured" in note for note in section.notes)


def test_rows_of_another_kind_are_refused(results: dict[str, Result], tmp_path: Path) -> None:
    data = tiny.rows_file(tmp_path / "rows.jsonl", tiny.CHATS)
    with pytest.raises(Problem, match="12 rows are not measured: unknown label"):
        evaluate(str(results["classify"].folder.path), [DataSpec(path=str(data))])


def test_it_does_not_chat(
    results: dict[str, Result], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, says in (("classify", "scores answers and writes none"), ("tag", "labels the words of texts")):
        folder = str(results[name].folder.path)
        monkeypatch.setattr(sys, "argv", ["tunesmith", "chat", folder, "--prompt", "who are you?"])
        with pytest.raises(SystemExit) as end:
            sys.exit(entry.main())
        assert end.value.code == 2
        assert says in " ".join(capsys.readouterr().err.split())


def test_training_goes_on_with_the_labels_of_the_model(results: dict[str, Result], tmp_path: Path) -> None:
    """A second run over the first one's adapter has its labels, whatever rows it sees; others are refused."""
    folder = results["classify"].folder.path
    rows = [row for row in JUDGED if row["label"] == "good"][:6] + JUDGED[-6:]
    second = train(tiny.run_of(folder, tmp_path, "classify", rows=rows, train={"steps": 2}))
    assert head_of(find(str(second.folder.path))).labels == ("bad", "good")
    other = [{**row, "label": {"good": "yes", "bad": "no"}[row["label"]]} for row in JUDGED]
    with pytest.raises(Problem, match="a head for the labels bad, good, and these are no, yes"):
        train(tiny.run_of(folder, tmp_path / "other", "classify", rows=other))


REFUSED: list[tuple[Any, list[dict[str, Any]], str]] = [
    ("classify", [{"text": f"t {n}", "label": "same"} for n in range(8)], "nothing to tell apart"),
    ("regress", JUDGED[:8], "label is no number"),
    ("tag", JUDGED[:8], "Labelled records, and the objective takes Tagged"),
    ({"classify": {"labels": ["a"]}}, JUDGED[:8], "has one"),
    ({"classify": {"labels": ["a", "b"], "weights": [1]}}, JUDGED[:8], "1 numbers for 2 labels"),
    ({"classify": {"labels": ["a", "a"]}}, JUDGED[:8], "twice"),
    ({"classify": {"per_text": "several", "label_smoothing": 0.1}}, JUDGED[:8], "spreads one label"),
]


@pytest.mark.parametrize(("objective", "rows", "why"), REFUSED)
def test_refused_in_words(objective: Any, rows: Any, why: str, bases: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(Problem, match=why):
        train(tiny.run_of(bases["llama"], tmp_path, objective, rows=rows))


def test_an_encoder_learns_no_answers(bases: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(Problem, match="reads a text both ways and writes none"):
        train(tiny.run_of(bases["bert"], tmp_path, "sft"))


def test_positions_of_roberta_begin_behind_its_filler(tmp_path: Path) -> None:
    roberta, bert = (tiny.folder(tmp_path / name, name, head="states") for name in ("roberta", "bert"))
    assert context_of(find(str(roberta))) == 129
    assert context_of(find(str(bert))) == 130


def test_rows_are_filled_with_a_token_that_ends_no_text() -> None:
    """transformers reads a score at the last token that is not the filler."""
    codec = Codec.of(sides_oracle("t5"))
    end = codec.encode_framed("a")[-1]
    assert padding(LlamaConfig(pad_token_id=end), codec) == codec.pad != end
    assert padding(LlamaConfig(pad_token_id=7), codec) == 7
    assert padding(LlamaConfig(pad_token_id=None), codec) == codec.pad


@pytest.mark.parametrize("kind", ["score", "tags"])
def test_a_base_without_a_filler_gets_one(kind: Any, tmp_path: Path) -> None:
    base = tiny.folder(tmp_path, "llama", pad_token_id=None)
    loaded = load(ModelSpec(path=str(base)), HeadSpec(kind, ("a", "b")))
    assert loaded.model.config.pad_token_id == loaded.codec.pad


def test_the_head_of_a_damaged_classifier_is_not_made_anew(results: dict[str, Result], tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base", "llama", head=HeadSpec("score", ("a", "b")))
    weights = {name: value for name, value in tiny.tensors(base).items() if not name.startswith("score.")}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Problem, match=r"missing from the files \(score.weight\)"):
        load(ModelSpec(path=str(base)), HeadSpec("score", ("a", "b")))
    with pytest.raises(Problem, match="scores answers and writes none"):
        open_model(ModelSpec(path=str(base)))
