"""The review task of the results: rows that are never in both files, models asked by transformers alone, and a table
whose every line follows from its count."""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from docpages import REPOSITORY
from scipy.stats import binomtest
from transformers import AutoTokenizer

from tunesmith import builtin
from tunesmith.models.heads import HeadSpec

TEXTS = ["很好", "不好，太慢了", "一般般，屏幕还可以", "good"]


@pytest.fixture(scope="module")
def reviews() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / "docs"))
        yield importlib.import_module("reviews")


@pytest.fixture
def files() -> Any:
    """docs/runs/reviews_rows.py as a module."""
    spec = importlib.util.spec_from_file_location("reviews_rows", REPOSITORY / "docs" / "runs" / "reviews_rows.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_are_in_one_file_and_doubtful_ones_in_none(
    files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [{"review": f"商品 {number}", "label": number % 2} for number in range(400)]
    doubtful = [{"review": "两可", "label": 0}, {"review": "两可 ", "label": 1}, {"review": " ", "label": 1}]
    source = tmp_path / "rows.jsonl.gz"
    with gzip.open(source, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in [*given, *given[:7], *doubtful])
    monkeypatch.setattr(files, "REVIEWS", source)
    monkeypatch.setattr(files, "OUTPUT", tmp_path / "out")
    files.main()
    train, held = (
        [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("train", "held_out")
    )
    assert not {row["text"] for row in train} & {row["text"] for row in held}
    both = sorted((row["text"], row["label"]) for row in [*train, *held])
    assert both == sorted((row["review"], row["label"]) for row in given)
    assert 20 <= len(held) <= 60


def small_model(folder: Path, seed: int) -> Any:
    """A random classifier with the shipped tokenizer, saved."""
    tokenizer = AutoTokenizer.from_pretrained(builtin.path("seedling"))
    model = tiny.model(head=HeadSpec("score", ("1", "0")), seed=seed, vocab_size=len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def test_a_run_is_asked_for_label_1_and_its_answers_are_kept(
    reviews: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reviews, "ROOT", tmp_path)
    monkeypatch.setattr(reviews, "KEPT", tmp_path / "kept")
    model, tokenizer = small_model(tmp_path / "runs" / "small" / "model", 1)
    found = reviews.asked("small", TEXTS)
    with torch.no_grad():
        right = [model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0].softmax(-1)[0].item() for text in TEXTS]
    assert found == pytest.approx(right, rel=1e-6)
    assert len({round(value, 6) for value in right}) == len(TEXTS)
    assert np.array_equal(reviews.asked("small", ["nothing", "of", "this", "is"]), found)
    small_model(tmp_path / "runs" / "small" / "model", 2)
    assert not np.allclose(reviews.asked("small", TEXTS), found)


def test_a_line_follows_from_what_was_said(reviews: Any) -> None:
    truth = np.array([True, False, True, True])
    voice = reviews.Voice("vote", np.array([0.9, 0.2, 0.4, 0.6]), 12.4, 3)
    *_, line = reviews.table([voice], truth, "en")
    assert line == "| vote of the 3 | 75.00 % | 30.1–95.4 | 3 | 12 |"


def lines_of(page: str) -> list[list[str]]:
    """The cells of the table on a page of results, without its head."""
    found = re.search(
        r"<!-- reviews -->\n(.*?)<!-- /reviews -->", (REPOSITORY / "docs" / page).read_text("utf-8"), re.S
    )
    assert found is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines()[2:]]


def test_the_pages_tell_the_same_and_every_line_follows_from_its_count() -> None:
    lines, twins = lines_of("results.md"), lines_of("results.zh.md")
    assert [line[1:] for line in lines] == [line[1:] for line in twins]
    assert len(lines) == 7
    for name, accuracy, interval, right, _ in lines:
        of = 5598
        count = int(right.replace(",", ""))
        exact = binomtest(count, of).proportion_ci(method="wilson")
        assert accuracy == f"{100 * count / of:.2f} %", name
        assert interval == f"{100 * exact.low:.1f}–{100 * exact.high:.1f}", name


def test_the_floor_is_passed_and_each_model_stands_alone() -> None:
    right = {line[0]: int(line[3].replace(",", "")) for line in lines_of("results.md")}
    floor = right["linear n-grams, the floor"]
    alone = [count for name, count in right.items() if name.startswith("read on")]
    assert len(alone) == 3
    assert right["vote of the 3"] > floor
    assert right["vote of the 3 and the n-grams"] > floor
