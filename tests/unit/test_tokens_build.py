"""Building stores: by one process or several, from the cache or anew, by one builder or two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from made_codecs import codec

from tunesmith.core.problem import Problem
from tunesmith.core.records import Chat, Text
from tunesmith.core.run import DataSpec, Run, TrainSpec, ValidationSpec
from tunesmith.data import build as module
from tunesmith.data.build import Part, build_store, store_fingerprint
from tunesmith.data.encode import Rules
from tunesmith.data.prepare import prepare
from tunesmith.data.sources import open_source
from tunesmith.data.store import TokenStore


def jsonl(path: Path, rows: list[object]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def questions(count: int, first: int = 0) -> list[object]:
    return [{"instruction": f"q{n}", "output": f"a{n} <|im_end|>"} for n in range(first, first + count)]


def parts(*specs: DataSpec) -> list[Part]:
    return [Part(source, entry) for entry, spec in enumerate(specs) for source in open_source(spec)]


def contents(store: TokenStore) -> list[tuple[object, ...]]:
    rows = [store.row(n) for n in range(len(store))]
    return [
        (row.trunk.tokens.tolist(), row.trunk.weights.tolist(), str(store.place(n)), int(store.sources[n]))
        for n, row in enumerate(rows)
    ]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "rows.jsonl", [*questions(60), "{broken", {"instruction": "q" * 99, "output": "a"}])


RULES = Rules(Chat, 100)


def test_several_workers_build_what_one_process_builds(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = parts(DataSpec(path=str(file)))
    alone, first = build_store(found, codec(), RULES, tmp_path / "one", processes=1)
    monkeypatch.setattr(module, "ALONE", 0)
    monkeypatch.setattr(module, "CHUNK", 7)
    told: list[int] = []
    together, second = build_store(found, codec(), RULES, tmp_path / "two", told.append, processes=2)
    assert contents(alone) == contents(together)
    assert [source.rejected for source in first.sources] == [source.rejected for source in second.sources]
    assert told[-1] == 61
    assert told == sorted(told)


def test_the_second_time_nothing_is_tokenised_and_the_report_is_the_same(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = parts(DataSpec(path=str(file)))
    store, report = build_store(found, codec(), RULES, tmp_path / "cache")
    lines = report.lines(long=True)
    assert any("too long" in line for line in lines)
    monkeypatch.setattr(module, "encode", None)
    again, told = build_store(found, codec(), RULES, tmp_path / "cache")
    assert contents(again) == contents(store)
    assert told.lines(long=True) == lines
    assert told.rejects is not None
    assert len(told.rejects.read_text("utf-8").splitlines()) == 2


def test_whatever_decides_the_rows_makes_another_store(file: Path, tmp_path: Path) -> None:
    spec = DataSpec(path=str(file))
    base = store_fingerprint(parts(spec), codec(), RULES)
    others = [
        store_fingerprint(parts(spec), codec("qwen3"), RULES),
        store_fingerprint(parts(spec), codec(), Rules(Chat, 99)),
        store_fingerprint(parts(spec), codec(), Rules(Chat, 100, learn="last")),
        store_fingerprint(parts(spec.model_copy(update={"system": "be kind"})), codec(), RULES),
        store_fingerprint(parts(spec.model_copy(update={"limit": 5})), codec(), RULES),
        store_fingerprint(parts(spec, spec), codec(), RULES),
    ]
    jsonl(file, questions(3))
    others.append(store_fingerprint(parts(spec), codec(), RULES))
    assert len({base, *others}) == len(others) + 1


def test_a_damaged_cache_is_noticed_and_built_anew(file: Path, tmp_path: Path) -> None:
    found = parts(DataSpec(path=str(file)))
    store, _ = build_store(found, codec(), RULES, tmp_path / "cache")
    before = contents(store)
    (folder,) = (tmp_path / "cache").iterdir()
    raw = bytearray((folder / "tokens.i32").read_bytes())
    raw[40] ^= 255
    (folder / "tokens.i32").unlink()
    (folder / "tokens.i32").write_bytes(raw)
    again, _ = build_store(found, codec(), RULES, tmp_path / "cache")
    assert contents(again) == before
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


def test_two_builders_at_once_do_not_disturb_each_other(file: Path, tmp_path: Path) -> None:
    found = parts(DataSpec(path=str(file)))
    out: list[list[tuple[object, ...]]] = []
    gate = threading.Barrier(3)

    def work() -> None:
        gate.wait()
        out.append(contents(build_store(found, codec(), RULES, tmp_path / "cache", processes=1)[0]))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(out) == 3
    assert out[0] == out[1] == out[2]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", [{"instruction": "q" * 99, "output": "a"}])
    with pytest.raises(Problem, match=r"rows\.jsonl:1: has"):
        build_store(parts(DataSpec(path=str(file))), codec(), Rules(Chat, 100, "refuse"), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(Problem, match="none of its 1 rows can be used"):
        build_store(parts(DataSpec(path=str(file))), codec(), RULES, tmp_path / "cache")


def test_on_bad_row_stop_stops_at_what_the_template_refuses(tmp_path: Path) -> None:
    chats = [{"instruction": "q", "output": "a"}, {"system": "s", "instruction": "q", "output": "a"}]
    file = jsonl(tmp_path / "rows.jsonl", [*chats])
    with pytest.raises(Problem, match="System role not supported"):
        spec = DataSpec(path=str(file), on_bad_row="stop")
        build_store(parts(spec), codec("gemma"), RULES, tmp_path / "cache")


def test_workers_do_not_run_the_callers_script(tmp_path: Path) -> None:
    """A script without a `__name__` guard must not train again in each worker."""
    jsonl(tmp_path / "rows.jsonl", questions(40))
    tests = Path(__file__).resolve().parent.parent
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(tests)!r})
from made_codecs import codec
from tunesmith.core.records import Chat
from tunesmith.core.run import DataSpec
from tunesmith.data import build
from tunesmith.data.encode import Rules
from tunesmith.data.sources import open_source
print("script runs", flush=True)
build.ALONE = 0
build.CHUNK = 5
parts = [build.Part(source, 0) for source in open_source(DataSpec(path="rows.jsonl"))]
print(len(build.build_store(parts, codec(), Rules(Chat), Path("cache"), processes=2)[0]), flush=True)
print(sorted({{"torch", "transformers"}} & set(sys.modules)), flush=True)
""",
        "utf-8",
    )
    source = str(Path(module.__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": source}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split("\n") == ["script runs", "40", "[]", ""], done.stderr


def run_of(*data: DataSpec, **validation: object) -> Run:
    spec = ValidationSpec.model_validate(validation)
    return Run.model_construct(data=data, validation=spec, train=TrainSpec(max_tokens=200))


def test_prepare_splits_by_content_and_prints_what_it_did(tmp_path: Path) -> None:
    rows = questions(40) * 2
    spec = DataSpec(path=str(jsonl(tmp_path / "rows.jsonl", rows)))
    prepared = prepare(run_of(spec, fraction=0.2), Rules(Chat), codec())
    assert len(prepared.train) + len(prepared.validation) == 80
    assert len(prepared.validation) == 16
    assert not set(prepared.train.keys.tolist()) & set(prepared.validation.keys.tolist())
    assert any("80 rows in = 80 used + 0 rejected" in line for line in prepared.lines)
    assert any("64 rows to learn from, 16 set aside" in line for line in prepared.lines)
    again = prepare(run_of(spec, fraction=0.2), Rules(Chat), codec())
    assert again.fingerprints == prepared.fingerprints
    assert np.array_equal(again.train.keys, prepared.train.keys)


def test_rows_on_both_sides_leave_the_training_side(tmp_path: Path) -> None:
    spec = DataSpec(path=str(jsonl(tmp_path / "train.jsonl", questions(30))))
    held = DataSpec(path=str(jsonl(tmp_path / "held.jsonl", questions(10, first=25))))
    prepared = prepare(run_of(spec, data=(held,), max_rows=6), Rules(Chat), codec())
    assert len(prepared.train) == 25
    assert len(prepared.validation) == 6
    assert any("5 rows stand in the validation data too" in line for line in prepared.lines)
    assert sum(source.rows_in for source in prepared.report.sources) == 40


def test_all_faults_of_sources_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(Problem) as found:
        prepare(
            run_of(DataSpec(path=str(tmp_path / "a.jsonl")), DataSpec(path=str(tmp_path / "b.jsonl"))),
            Rules(Text),
            codec(),
        )
    assert "a.jsonl" in str(found.value)
    assert "b.jsonl" in str(found.value)
