"""The corpus of the seedling: cleaning, grouping and holding out, on known cases and on the real files."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.core.run import read_run


@pytest.fixture(scope="module")
def clean(repository: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository))
        yield importlib.import_module("seedling.clean")


@pytest.fixture
def corpus(repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(repository))
    module = importlib.import_module("seedling.corpus")
    for name in ("CORPUS", "PARTS", "HELD_OUT", "SOURCES"):
        monkeypatch.setattr(module, name, tmp_path / name)
    return module


@pytest.mark.parametrize(
    ("spaced", "written"),
    [
        ("a multi @-@ purpose back , 1 @,@ 000 yards ( 24 in ) .", "a multi-purpose back, 1,000 yards (24 in)."),
        ("He said '' no '' ; we did n't .", 'He said "no"; we didn\'t.'),
        ("men 's golf at $ 5", "men's golf at $5"),
        ("Aegean ( , ; ) is large", "Aegean is large"),
    ],
)
def test_spacing_is_undone(clean: Any, spaced: str, written: str) -> None:
    assert clean.unspaced(spaced) == written


def test_spaced_hyphens_close_only_when_asked(clean: Any) -> None:
    assert clean.unspaced("1950 - 51", hyphens=True) == "1950-51"
    assert clean.unspaced("1950 - 51") == "1950 - 51"


@pytest.mark.parametrize("sentence", ["Frank <unk> left .", "playing as a , or .", "known as, of."])
def test_sentences_with_gaps_are_seen(clean: Any, sentence: str) -> None:
    assert not clean.whole(clean.unspaced(sentence))


def test_broken_quotes_are_mended(clean: Any) -> None:
    good = "“Don’t,” he said"
    broken = good.encode().decode("cp1252", errors="ignore")
    assert clean.mended(broken) == '"Don\'t," he said'


@given(st.lists(st.text("ab ", min_size=1, max_size=30), max_size=20), st.integers(1, 60))
def test_groups_keep_every_part_in_order(clean: Any, parts: list[str], size: int) -> None:
    documents = list(clean.grouped(parts, size, "|"))
    assert "|".join(documents).split("|") == (parts or [""])
    assert all(len(document.replace("|", "")) <= size or "|" not in document for document in documents)


def test_a_stride_only_reorders(clean: Any) -> None:
    parts = [str(number) for number in range(100)]
    mixed = clean.strided(parts, 7)
    assert mixed[:3] == ["0", "7", "14"]
    assert sorted(mixed, key=int) == parts


def test_one_in_a_hundred_is_held_out(corpus: Any) -> None:
    count = sum(corpus.held_out(f"document {number}") for number in range(20_000))
    assert 160 <= count <= 240


def test_the_real_corpus_is_clean_and_as_recorded(corpus: Any, repository: Path, shared_data: Path) -> None:
    facts = corpus.build(shared_data)
    assert facts == json.loads((repository / "seedling" / "sources.json").read_text(encoding="utf-8"))
    first = _texts(corpus.CORPUS)
    assert len(first) == sum(fact["rows"] for fact in facts if fact["stage"] == 1)
    kept = [text for part in sorted(corpus.PARTS.iterdir()) for text in _texts(part)]
    assert set(first) < set(kept) and len(set(kept)) == len(kept)
    aside = [json.loads(line) for line in corpus.HELD_OUT.open(encoding="utf-8")]
    assert len(kept) == sum(fact["rows"] for fact in facts)
    assert not set(kept) & {row["text"] for row in aside}
    assert {row["language"] for row in aside} == {"en", "zh"}
    for mark in ("<unk>", "@-@", "â€", r"<<\d", "Project Gutenberg", "�"):
        assert not any(re.search(mark, text) for text in kept), mark


def _texts(file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in file.open(encoding="utf-8")]


@pytest.mark.parametrize("file", ["pretrain.yaml", "pretrain-2.yaml", "pretrain-3.yaml"])
def test_the_run_files_are_runs(repository: Path, file: str) -> None:
    run = read_run(repository / "seedling" / file)
    assert (run.objective.name(), run.method.name(), run.optimizer.name()) == ("pretrain", "full", "muon")
    assert run.validation.data[0].path not in {spec.path for spec in run.data}
