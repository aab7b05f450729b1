"""A disk that fills up, may not be written, or loses the run: a paragraph with numbers, and what was saved is whole."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft.peft_model
import pytest
import small_runs as runs
from attacks import command, forked, one_paragraph, patched
from safetensors import SafetensorError

from tunesmith.core.rundir import RunDir
from tunesmith.train import checkpoint, verb
from tunesmith.train.tell import Teller
from tunesmith.train.verb import resume, train


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The run that nobody disturbed."""
    where = tmp_path_factory.mktemp("whole")
    train(runs.run(base, where))
    return runs.folder(where)


class Full(io.TextIOWrapper):
    """A file on a disk with room for a few more bytes."""

    room = 0

    def write(self, text: str) -> int:
        if len(text) > self.room:
            super().write(text[: self.room])
            super().flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(text)
        return super().write(text)


def fails(owner: Any, name: str, turn: int, error: Callable[[], BaseException]) -> Any:
    """The n-th call of a function fails, and all after it, as on a disk that stays full."""
    call = getattr(owner, name)
    seen: list[int] = []

    def counted(*args: Any, **more: Any) -> Any:
        seen.append(1)
        if len(seen) >= turn:
            raise error()
        return call(*args, **more)

    return patched(owner, name, counted)


def no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space_in_safetensors() -> SafetensorError:
    return SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@contextlib.contextmanager
def little_room_for_events() -> Iterator[None]:
    opened = Teller.__init__

    def init(self: Teller, *args: Any, **more: Any) -> None:
        opened(self, *args, **more)
        assert self.file is not None
        self.file.close()
        self.file = Full(self.folder.events.open("ab", buffering=0), encoding="utf-8")
        self.file.room = 700

    with patched(Teller, "__init__", init):
        yield


PLACES: dict[str, Callable[[], Any]] = {
    "weights of the first checkpoint": lambda: fails(checkpoint, "save_file", 1, no_space_in_safetensors),
    "optimizer of the second checkpoint": lambda: fails(checkpoint, "save_file", 6, no_space_in_safetensors),
    "manifest of the second checkpoint": lambda: fails(checkpoint, "_write_manifest", 3, no_space),
    "fsync": lambda: fails(os, "fsync", 40, no_space),
    "quota": lambda: fails(checkpoint, "_write_manifest", 3, lambda: OSError(errno.EDQUOT, "over the quota")),
    "rename of a checkpoint": lambda: fails(checkpoint, "_publish", 3, no_space),
    "space is counted before": lambda: patched(
        checkpoint.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 40, 1 << 40, 12_345)
    ),
    "events": little_room_for_events,
    "model": lambda: fails(peft.peft_model, "safe_save_file", 1, no_space_in_safetensors),
    "tokenizer of the model": lambda: fails(verb, "save_tokenizer", 1, no_space),
    "record at the end": lambda: fails(verb, "write_record", 2, no_space),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_full_disk_is_told_with_numbers_and_nothing_is_lost(
    place: str, base: Path, whole: RunDir, tmp_path: Path
) -> None:
    file = runs.run_file(runs.run(base, tmp_path), tmp_path / "run.yaml")
    found = runs.folder(tmp_path)

    def act() -> None:
        with PLACES[place]():
            command("train", file)()

    end = forked(act, tmp_path / "log")
    assert end.status == 2, end.text
    fault = end.text[end.text.rindex("\n" + str(tmp_path)) :] if "\n" + str(tmp_path) in end.text else end.text
    one_paragraph(fault)
    assert "MB" in fault or "GB" in fault, fault
    assert list(found.checkpoints.glob(".*")) == []
    for kept in found.checkpoints.glob("*"):
        checkpoint.read(kept)
    if found.is_run():
        resume(found.path)
    else:
        train(runs.run(base, tmp_path))
    assert runs.result(found) == runs.result(whole)
    assert runs.told(found, "step", "validate") == runs.told(whole, "step", "validate")


# ── a disk that really is full ────────────────────────────────────────────────────────────────────────────────────


def mounted(where: Path, options: str, flags: int = 0) -> bool:
    """Mount a small disk in memory; False where that is not allowed."""
    where.mkdir(parents=True, exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.mount(b"tmpfs", str(where).encode(), b"tmpfs", flags, options.encode()) == 0


def unmount(where: Path) -> None:
    ctypes.CDLL(None).umount2(str(where).encode(), 2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MB."""
    where = tmp_path / "disk"
    if not mounted(where, "size=6m"):
        pytest.skip("mounting a small disk needs the rights of root")
    yield where
    unmount(where)


def test_a_disk_that_really_is_full(base: Path, whole: RunDir, small_disk: Path) -> None:
    """The run starts with room; then something else fills the disk; then there is room again."""
    wanted = runs.run(base, small_disk)
    found = runs.folder(small_disk)
    log = small_disk.parent / "log"
    ballast = small_disk / "ballast"

    def act() -> None:
        def hear(event: Any) -> None:
            if event.kind == "step" and event.step == 3:
                fill(ballast)

        train(wanted, hear=hear)

    end = forked(act, log)
    assert end.status == 2, end.text
    one_paragraph(end.text)
    assert "full" in end.text and "MB" in end.text
    again = forked(lambda: resume(found.path), log)
    assert again.status == 2, again.text
    one_paragraph(again.text)
    ballast.unlink()
    resume(found.path)
    assert runs.result(found) == runs.result(whole)


def fill(file: Path) -> None:
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as stream:
        while True:
            stream.write(b"\0" * 512)


def test_a_full_cache_is_told(base: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = small_disk / "cache"
    cache.mkdir()
    fill(small_disk / "ballast")
    monkeypatch.setenv("TUNESMITH_CACHE", str(cache))
    file = runs.run_file(runs.run(base, small_disk.parent / "r"), small_disk.parent / "run.yaml")
    end = forked(command("train", file), small_disk.parent / "log")
    assert end.status == 2, end.text
    assert "TUNESMITH_CACHE" in end.text and "bytes are free" in end.text, end.text
    assert "Traceback" not in end.text
    assert not runs.folder(small_disk.parent / "r").path.exists()
    (small_disk / "ballast").unlink()
    assert forked(command("train", file), small_disk.parent / "log").status == 0


READ_ONLY = 1


@pytest.mark.parametrize("what", ["output", "cache"])
def test_a_disk_that_may_not_be_written(what: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = tmp_path / "disk"
    if not mounted(where, "size=1m", READ_ONLY):
        pytest.skip("mounting a disk needs the rights of root")
    try:
        wanted = runs.run(base, tmp_path / "r")
        if what == "output":
            wanted = wanted.model_copy(update={"output": str(where / "run")})
        else:
            monkeypatch.setenv("TUNESMITH_CACHE", str(where / "cache"))
        end = forked(command("train", runs.run_file(wanted, tmp_path / "run.yaml")), tmp_path / "log")
        assert end.status == 2, end.text
        assert "Traceback" not in end.text and "read-only" in end.text.lower(), end.text
    finally:
        unmount(where)


def test_an_output_below_a_file(base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wanted = runs.run(base, tmp_path).model_copy(update={"output": str(tmp_path / "file" / "run")})
    end = forked(command("train", runs.run_file(wanted, tmp_path / "run.yaml")), tmp_path / "log")
    assert end.status == 2 and "Traceback" not in end.text, end.text


@pytest.mark.parametrize("name", ["model", "checkpoints"])
def test_an_output_that_holds_what_is_not_ours_is_refused(name: str, base: Path, tmp_path: Path) -> None:
    """`output: .` beside a folder called model must not cost anyone that model."""
    theirs = tmp_path / "run" / name / "step-00000001"
    theirs.mkdir(parents=True)
    (theirs / "weights").write_text("theirs")
    end = forked(command("train", runs.run_file(runs.run(base, tmp_path), tmp_path / "run.yaml")), tmp_path / "log")
    assert end.status == 2 and name in end.text, end.text
    assert (theirs / "weights").read_text() == "theirs"


@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_run_folder_that_is_removed_stops_the_run(step: int, base: Path, tmp_path: Path) -> None:
    wanted = runs.run(base, tmp_path)
    found = runs.folder(tmp_path)

    def act() -> None:
        train(wanted, hear=lambda event: event.kind == "step" and event.step == step and shutil.rmtree(found.path))

    end = forked(act, tmp_path / "log")
    assert end.status == 2, end.text
    one_paragraph(end.text)
    assert "removed" in end.text
    assert not found.path.exists()
