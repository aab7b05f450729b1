"""Merges that are killed, run out of disk, or read what others write: nothing half done is ever under the name."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from attacks import one_paragraph
from small_models import model, read, recipe, tensors, three

from tunesmith.core.problem import Problem
from tunesmith.merge import output
from tunesmith.merge.verb import How, merge

SHARDED = How(proof="files", shard=800, threads=1)
MEAN = {"merge_method": "linear", "models": [{"model": "m0"}, {"model": "m1"}], "parameters": {"weight": 1}}

KILLED = """
import os, signal, sys
from pathlib import Path
from tunesmith.merge import verb
from tunesmith.merge.verb import How, merge

name, turn, after = sys.argv[3], int(sys.argv[4]), sys.argv[5] == "after"
owner = os if hasattr(os, name) else Path
call, seen = getattr(owner, name), []

def counted(*args, **more):
    seen.append(1)
    if len(seen) == turn and not after:
        os.kill(os.getpid(), signal.SIGKILL)
    answer = call(*args, **more)
    if len(seen) == turn:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer

setattr(owner, name, counted)
merge(Path(sys.argv[1]), Path(sys.argv[2]), How(proof="files", shard=800, threads=1))
"""

MOMENTS = [
    ("pwrite", 1, "before"),
    ("pwrite", 9, "after"),
    ("fsync", 3, "before"),
    ("fsync", 11, "after"),
    ("replace", 4, "before"),
    ("replace", 7, "after"),
    ("rename", 1, "before"),
    ("rename", 1, "after"),
]


def problem(file: Path, folder: Path, how: How = SHARDED) -> str:
    with pytest.raises(Problem) as caught:
        merge(file, folder, how)
    one_paragraph(str(caught.value))
    return str(caught.value)


@pytest.mark.parametrize(("name", "turn", "when"), MOMENTS)
def test_killed_at_any_moment_it_goes_on(name: str, turn: int, when: str, tmp_path: Path) -> None:
    made = three(tmp_path)
    file, out = recipe(tmp_path, MEAN), tmp_path / "out"
    words = [sys.executable, "-c", KILLED, str(file), str(out), name, str(turn), when]
    done = subprocess.run(words, capture_output=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    if (name, when) == ("rename", "after"):
        assert out.is_dir()
    else:
        assert not out.exists()
        merge(file, out, SHARDED)
    found = read(out)
    assert all(torch.allclose(found[each], (made[0][each] + made[1][each]) / 2) for each in made[0])
    assert not list(tmp_path.glob(".*"))
    assert not list(out.glob(".*")) and not list(out.glob("*.part")) and not (out / output.NOTES).exists()


def stopped_after(monkeypatch: pytest.MonkeyPatch, finished: int, error: BaseException) -> None:
    """Let the work stop when so many files are finished."""
    call, seen = output.Staging.finish, []

    def counted(self: output.Staging, shard: output.ShardFile) -> None:
        if len(seen) == finished:
            raise error
        seen.append(shard.name)
        call(self, shard)

    monkeypatch.setattr(output.Staging, "finish", counted)


def test_finished_files_are_kept_and_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three(tmp_path)
    file, out = recipe(tmp_path, MEAN), tmp_path / "out"
    with monkeypatch.context() as patch:
        stopped_after(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            merge(file, out, SHARDED)
    assert not out.exists()
    first = sorted(output.staging_of(out).glob("*.safetensors"))
    before = [each.stat().st_mtime_ns for each in first]
    done = merge(file, out, SHARDED)
    assert list(done.kept) == [each.name for each in first] and len(first) == 2
    assert [(out / each.name).stat().st_mtime_ns for each in first] == before


@pytest.mark.parametrize("change", ["recipe", "input", "seed", "file"])
def test_what_was_kept_is_dropped_if_anything_changed(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = three(tmp_path)
    file, out = recipe(tmp_path, MEAN), tmp_path / "out"
    with monkeypatch.context() as patch:
        stopped_after(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            merge(file, out, SHARDED)
    how = SHARDED
    if change == "recipe":
        file = recipe(tmp_path, {**MEAN, "parameters": {"weight": [1, 1]}})
    elif change == "input":
        shutil.rmtree(tmp_path / "m1")
        made[1] = tensors(7)
        model(tmp_path / "m1", made[1])
    elif change == "seed":
        how = How(1, 1, 800, "files")
    else:
        kept = sorted(output.staging_of(out).glob("*.safetensors"))[0]
        kept.write_bytes(kept.read_bytes()[:-1] + b"\0")
    done = merge(file, out, how)
    assert len(done.kept) == (1 if change == "file" else 0)
    found = read(out)
    assert all(torch.allclose(found[each], (made[0][each] + made[1][each]) / 2) for each in made[0])


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
def test_a_full_disk_is_told_and_the_merge_goes_on(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three(tmp_path)
    file, out = recipe(tmp_path, MEAN), tmp_path / "out"
    real, seen = getattr(os, call), []

    def fails(*args: Any) -> Any:
        seen.append(1)
        if len(seen) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        told = problem(file, out)
    assert "the disk is full" in told and "MB free" in told
    assert not out.exists()
    merge(file, out, SHARDED)


def test_what_cannot_fit_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three(tmp_path)
    file, out = recipe(tmp_path, MEAN), tmp_path / "out"
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 40, 1 << 40, 1_000))
    assert "needs 0.0 MB, and the disk has 0.0 MB free" in problem(file, out)
    assert not list(output.staging_of(out).glob("*.safetensors*"))


def test_an_output_that_exists_is_left_alone(tmp_path: Path) -> None:
    three(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").write_text("theirs")
    assert "exists already" in problem(recipe(tmp_path, MEAN), tmp_path / "out")
    assert (tmp_path / "out" / "theirs").read_text() == "theirs"


def test_a_second_merge_at_once_is_refused(tmp_path: Path) -> None:
    three(tmp_path)
    staging = output.staging_of(tmp_path / "out")
    staging.mkdir()
    with (staging / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "another merge" in problem(recipe(tmp_path, MEAN), tmp_path / "out")
    merge(recipe(tmp_path, MEAN), tmp_path / "out", SHARDED)


def test_an_output_that_may_not_be_written(tmp_path: Path) -> None:
    three(tmp_path)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in problem(recipe(tmp_path, MEAN), tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("cut", "not a whole safetensors file"),
        ("header", "not a whole safetensors file"),
        ("shard", "not complete"),
        ("pickle", "pickles"),
        ("config", "config.json"),
        ("layers", "its files hold 2 layers"),
        ("quantised", "is stored as F8_E4M3"),
    ],
)
def test_inputs_that_are_not_whole_are_told(damage: str, words: str, tmp_path: Path) -> None:
    model(tmp_path / "m0", tensors(0))
    bad = model(tmp_path / "m1", tensors(1), shards=2)
    file = sorted(bad.glob("*.safetensors"))[0]
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "header":
        file.write_bytes(b"\xff" * 16 + file.read_bytes()[16:])
    elif damage == "shard":
        file.unlink()
    elif damage == "pickle":
        for each in bad.glob("*.safetensors*"):
            each.unlink()
        (bad / "pytorch_model.bin").write_bytes(b"")
    elif damage == "config":
        (bad / "config.json").write_text("{")
    else:
        shutil.rmtree(bad)
        held = tensors(1, layers=2) if damage == "layers" else tensors(1)
        if damage == "quantised":
            held["model.norm.weight"] = held["model.norm.weight"].to(torch.float8_e4m3fn)
        model(bad, held, num_hidden_layers=3)
    told = problem(recipe(tmp_path, MEAN), tmp_path / "out")
    assert words in told and str(bad) in told
    assert not (tmp_path / "out").exists()


def test_an_input_that_changes_while_it_is_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three(tmp_path)
    file = tmp_path / "m1" / "model.safetensors"
    real = os.posix_fallocate

    def cuts(*args: Any) -> None:
        real(*args)
        os.truncate(file, file.stat().st_size // 2)

    monkeypatch.setattr(os, "posix_fallocate", cuts)
    told = problem(recipe(tmp_path, MEAN), tmp_path / "out")
    assert str(file) in told and "changed or cut short" in told
    assert not (tmp_path / "out").exists()


def test_the_record_says_what_was_merged(tmp_path: Path) -> None:
    three(tmp_path)
    merge(recipe(tmp_path, MEAN), tmp_path / "out", SHARDED)
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert record["method"] == "linear" and [each["folder"] for each in record["models"]] == [
        str(tmp_path / "m0"),
        str(tmp_path / "m1"),
    ]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "merge_method: linear" in card and str(tmp_path / "m0") in card
