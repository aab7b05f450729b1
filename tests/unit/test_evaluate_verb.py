"""Evaluate from end to end: runs, adapters and models, by the kind of their rows; the page and the JSON of results."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_benches import tiny_folder

from tunesmith.core.problem import Problem
from tunesmith.core.run import DataSpec, ModelSpec, Run
from tunesmith.evaluate.results import Results
from tunesmith.evaluate.settings import Settings
from tunesmith.evaluate.verb import evaluate
from tunesmith.generate.opened import open_model
from tunesmith.train.verb import train

EVIL = "<script>alert('x')</script> & \"quotes\" 你好"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"))


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def reviews(n: int) -> list[dict[str, Any]]:
    words = {"good": ("fine", "lovely", "tasty"), "bad": ("poor", "stale", "cold")}
    labels = ["good" if number % 2 else "bad" for number in range(n)]
    return [{"text": f"the {words[label][k % 3]} thing {k}", "label": label} for k, label in enumerate(labels)]


def trained(folder: Path, model: Path, data: str, **options: Any) -> str:
    value = {
        "model": {"path": str(model), "device": "cpu", "dtype": "float32"},
        "data": [{"path": data, **options.pop("source", {})}],
        "validation": {"fraction": 0.3},
        "train": {"steps": 2, "listeners": [], "max_tokens": 200},
        "optimizer": {"adamw": {"lr": 0.01}},
        "output": str(folder / "run"),
        **options,
    }
    return str(train(Run.model_validate(value)).folder.path)


@pytest.fixture(scope="module")
def labelled_run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("labelled")
    return trained(folder, model, write(folder / "reviews.jsonl", reviews(60)), source={"prompt": "Review: {text}"})


def figures(results: Results, name: str) -> dict[str, float]:
    rows = [row for section in results.sections for row in section.table if row.name == name]
    assert len(rows) == 1
    return {column: figure.value for column, figure in rows[0].figures.items()}


def test_a_run_on_labelled_texts(labelled_run: str) -> None:
    told: list[str] = []
    results = evaluate(labelled_run, listen=lambda what, done, total: told.append(what))
    assert results.columns == ("base", "tuned", "majority class", "linear n-grams")
    assert [section.name for section in results.sections] == ["Labels", "Perplexity of answers"]
    labels, answers = results.sections
    assert labels.rows == answers.rows == 18
    assert figures(results, "accuracy")["linear n-grams"] == 1.0
    assert set(labels.confusion) == set(results.columns)
    assert labels.notes[0] == "2 labels: bad, good"
    assert sum(map(sum, labels.confusion["tuned"].counts)) == 18
    assert labels.best[0].case.prompt.startswith("Review: the ")
    assert labels.best[0].scores["tuned"] >= labels.worst[0].scores["tuned"]
    assert any("does not beat the linear n-grams baseline" in found for found in results.findings)
    assert {"data", "validation", "weights", "tokenizer"} <= set(results.fingerprints)
    assert {"base: labels", "tuned: labels", "tuned: perplexity"} <= set(told)
    assert evaluate(labelled_run) == results


def test_the_tuned_column_is_what_the_loop_measured(labelled_run: str) -> None:
    events = [json.loads(line) for line in (Path(labelled_run) / "events.jsonl").read_text().splitlines()]
    losses = {event["step"]: event["values"]["loss"] for event in events if event["kind"] == "validate"}
    found = figures(evaluate(labelled_run), "perplexity")
    assert found["base"] == pytest.approx(2.718281828 ** losses[0], rel=1e-3)
    assert found["tuned"] == pytest.approx(2.718281828 ** min(losses.values()), rel=1e-3)


def test_the_adapter_alone_and_named_data(labelled_run: str, tmp_path: Path) -> None:
    adapter = str(Path(labelled_run) / "model")
    spec = DataSpec(path=write(tmp_path / "test.jsonl", reviews(12)), prompt="Review: {text}")
    alone = evaluate(adapter, [spec])
    assert alone.columns == ("base", "tuned")
    run = evaluate(labelled_run, [spec.model_copy(update={"prompt": None})])
    assert figures(run, "perplexity") == figures(alone, "perplexity")
    assert figures(run, "accuracy")["linear n-grams"] == 1.0
    with pytest.raises(Problem, match="no run, so it has no validation rows"):
        evaluate(adapter)


def test_a_label_that_training_does_not_know(labelled_run: str, tmp_path: Path) -> None:
    data = write(tmp_path / "test.jsonl", [*reviews(12), {"text": "hm", "label": "mixed"}])
    with pytest.raises(Problem, match=r"'mixed' \(1 rows\).*The labels of training: 'bad', 'good'"):
        evaluate(labelled_run, [DataSpec(path=data)])
    results = evaluate(labelled_run, [DataSpec(path=data)], Settings(labels="none"))
    assert [section.name for section in results.sections] == ["Perplexity of answers"]


def test_a_full_run_against_the_model_it_started_from(model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "texts.jsonl", [{"text": f"the thing number {n} is here"} for n in range(30)])
    run = trained(tmp_path, model, data, objective="pretrain", method="full")
    results = evaluate(run)
    assert results.columns == ("base", "tuned")
    values = figures(results, "perplexity")
    assert values["base"] != values["tuned"]
    assert figures(evaluate(str(model), [DataSpec(path=data)]), "perplexity").keys() == {"model"}


@pytest.mark.parametrize("objective", ["dpo", "reward"])
def test_runs_on_preferences(model: Path, tmp_path: Path, objective: str) -> None:
    rows = [
        {"instruction": f"say {n}", "input": "", "chosen": f"good {n}", "rejected": f"bad and long {n}"}
        for n in range(30)
    ]
    run = trained(tmp_path, model, write(tmp_path / "pairs.jsonl", rows), objective=objective)
    results = evaluate(run)
    if objective == "reward":
        assert results.columns == ("tuned",)
        assert set(figures(results, "pairs ranked by score")) == {"tuned"}
    else:
        assert results.columns == ("base", "tuned")
        assert set(figures(results, "pairs ranked by likelihood")) == {"base", "tuned"}
        assert set(figures(results, "pairs ranked by reward against the base")) == {"tuned"}
    texts = [DataSpec(path=write(tmp_path / "texts.jsonl", [{"text": "hello"}]))]
    if objective == "reward":
        with pytest.raises(Problem, match="a model with a score head is not measured on Text rows"):
            evaluate(run, texts)
        with pytest.raises(Problem, match="scores answers and writes none"):
            open_model(ModelSpec(path=run, device="cpu", dtype="float32"))
    else:
        assert set(figures(evaluate(run, texts), "perplexity")) == {"base", "tuned"}


@pytest.mark.parametrize("settings", [Settings(generate=3), Settings(labels="per_token")])
def test_settings_that_would_do_nothing_are_refused(model: Path, tmp_path: Path, settings: Settings) -> None:
    texts = [DataSpec(path=write(tmp_path / "texts.jsonl", [{"text": "hello"}]))]
    with pytest.raises(Problem, match="it is for chats and labelled texts"):
        evaluate(str(model), texts, settings)


def test_a_metric_that_is_not_there_is_told_before_anything_is_loaded(model: Path, tmp_path: Path) -> None:
    chats = [DataSpec(path=write(tmp_path / "chats.jsonl", [{"instruction": "a", "input": "", "output": "b"}] * 2))]
    settings = Settings.model_validate({"generate": 2, "metrics": {"python": {"path": "nowhere.py"}}})
    with pytest.raises(Problem, match=r"nowhere.py: there is no such file"):
        evaluate(str(model), chats, settings)


def test_named_data_is_drawn_by_the_seed(model: Path, tmp_path: Path) -> None:
    texts = [DataSpec(path=write(tmp_path / "texts.jsonl", [{"text": f"the thing {n}"} for n in range(40)]))]
    first, again, other = (evaluate(str(model), texts, Settings(max_rows=10, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first.sections[0].rows == 10
    assert first.notes == ("10 of 40 rows were drawn to be measured",)
    assert figures(first, "perplexity") != figures(other, "perplexity")


@pytest.fixture(scope="module")
def generated(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("generated")
    rows = [{"instruction": f"{EVIL} {n}", "input": "", "output": f"<b>{n}</b> 好的"} for n in range(12)]
    rows[3]["instruction"] = "long " * 100
    (folder / "mine.py").write_text("def points(answer, reference):\n    return len(answer)\n")
    mine = {"python": {"path": str(folder / "mine.py"), "function": "points"}}
    settings = Settings.model_validate(
        {"generate": 4, "sampling": {"max_tokens": 5}, "metrics": ["chrf", "bleu", mine], "samples": 2}
    )
    return evaluate(str(model), [DataSpec(path=write(folder / "chats.jsonl", rows))], settings)


def test_generated_answers(generated: Results) -> None:
    section = generated.sections[-1]
    assert section.name == "Generated answers"
    assert [row.name for row in section.table] == [
        "chrf", "bleu (tokens: zh)", "points (mine.py)", "answers cut at max_tokens",
    ]  # fmt: skip
    assert section.rows == 4
    assert section.notes == (
        "1 rows are not measured: prompt as long as the context",
        "answers are generated for the first 4 of 11 rows",
    )
    assert all(sample.answers["model"] for sample in section.best)


class Page(HTMLParser):
    """Collects the tags of a page, and fails on any that is left open."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on") or name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_escapes_what_it_shows(generated: Results, tmp_path: Path) -> None:
    data, html = generated.save(tmp_path / "evaluation")
    text = html.read_text("utf-8")
    page = Page()
    page.feed(text)
    assert not page.open
    assert not page.seen & {"script", "b", "iframe", "img", "link"}
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in text
    assert "你好" in text
    assert "default-src &#x27;none&#x27;" in text
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"https?://", text)
    value = json.loads(data.read_text("utf-8"), parse_constant=lambda name: pytest.fail(name))
    assert value["sections"][-1]["best"][0]["case"]["prompt"].startswith("<script>")
    assert value["columns"] == ["model"]


def test_the_lines_of_the_table(generated: Results) -> None:
    head, *lines = generated.lines()
    assert head == ("", "model", "")
    assert {len(line) for line in lines} == {3}
    assert re.fullmatch(r"[\d.,]+ \([\d.,]+–[\d.,]+\)", lines[0][1])


@pytest.mark.parametrize(
    ("metrics", "fault"), [(["blue"], "there is no metric 'blue'"), ([{"bleu": {"tokenise": "zh"}}], "no such option")]
)
def test_faults_of_settings(metrics: list[Any], fault: str) -> None:
    from tunesmith.core.options import parse

    with pytest.raises(Problem, match=fault):
        parse(Settings, {"metrics": metrics}, "settings")


def test_others_stand_beside_on_the_same_rows(labelled_run: str, model: Path, tmp_path: Path) -> None:
    data = [DataSpec(path=write(tmp_path / "rows.jsonl", reviews(20)), prompt="Review: {text}")]
    results = evaluate(str(model), data, Settings(beside=(labelled_run,)))
    assert results.columns[:2] == ("model", labelled_run)
    alone = evaluate(labelled_run, data, Settings(against="nothing"))
    for section, own in zip(results.sections, alone.sections, strict=True):
        for row, expected in zip(section.table, own.table, strict=True):
            assert row.figures[labelled_run] == expected.figures["tuned"]
    assert any(f"{labelled_run} in perplexity" in sentence for sentence in results.findings)


def test_a_model_stands_there_once(model: Path, tmp_path: Path) -> None:
    data = [DataSpec(path=write(tmp_path / "rows.jsonl", reviews(4)))]
    with pytest.raises(Problem, match="stands there twice"):
        evaluate(str(model), data, Settings(beside=(str(model),)))
