"""Checkpoints that are damaged are found out, the one before is used and it is said; those of others are refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_runs as runs
from attacks import LONG, flip, one_paragraph, trap

from tunesmith.core.problem import Problem
from tunesmith.core.rundir import RunDir
from tunesmith.train import checkpoint, loop
from tunesmith.train.verb import resume, train

Damage = Callable[[Path], object]
FILES = ("weights.safetensors", "optimizer.safetensors", "random.safetensors", "state.json", "manifest.json")


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The run that nobody disturbed."""
    where = tmp_path_factory.mktemp("whole")
    train(runs.run(base, where))
    return runs.folder(where)


class Stop(BaseException):
    """Leaves a run in its middle."""


@pytest.fixture(scope="module")
def halfway(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that died in its fifth step, with checkpoints of steps 2 and 4."""
    where = tmp_path_factory.mktemp("halfway")

    def hear(event: Any) -> None:
        if event.kind == "step" and event.step == 5:
            raise Stop

    with pytest.raises(Stop):
        train(runs.run(base, where), hear=hear)
    return where / "run"


@pytest.fixture
def broken(halfway: Path, tmp_path: Path) -> RunDir:
    return RunDir(Path(shutil.copytree(halfway, tmp_path / "run")))


def newest(found: RunDir) -> Path:
    return found.checkpoints / "step-00000004"


def manifest(folder: Path, **changes: Any) -> None:
    """A manifest that fits its files and hashes but says something else."""
    file = folder / "manifest.json"
    value = {**json.loads(file.read_text()), **changes}
    value.pop("sha256")
    file.write_text(json.dumps({**value, "sha256": checkpoint._digest(value)}))


DAMAGES: dict[str, Damage] = {
    **{f"{name} is missing": lambda folder, name=name: (folder / name).unlink() for name in FILES},
    **{f"{name} is empty": lambda folder, name=name: (folder / name).write_bytes(b"") for name in FILES},
    **{
        f"{name} is cut": lambda folder, name=name: os.truncate(folder / name, (folder / name).stat().st_size - 1)
        for name in FILES
    },
    **{f"{name}, first bit": lambda folder, name=name: flip(folder / name, 0) for name in FILES},
    **{f"{name}, a middle bit": lambda folder, name=name: flip(folder / name, 417, 3) for name in FILES},
    **{f"{name}, last bit": lambda folder, name=name: flip(folder / name, -2, 1) for name in FILES},
    "a folder for a file": lambda folder: ((folder / "state.json").unlink(), (folder / "state.json").mkdir()),
    "an empty folder": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    "a file for the folder": lambda folder: (shutil.rmtree(folder), folder.write_text("")),
    "a link to nowhere": lambda folder: (shutil.rmtree(folder), folder.symlink_to("/nowhere")),
    "a manifest of no files": lambda folder: manifest(folder, files={}),
    "a manifest of another format": lambda folder: manifest(folder, format=2),
    "a manifest that is a list": lambda folder: (folder / "manifest.json").write_text("[]"),
    "a deep manifest": lambda folder: (folder / "manifest.json").write_text('{"a":' * 50_000),
    "a manifest that is no text": lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00"),
    "files swapped": lambda folder: (
        (folder / "weights.safetensors").rename(folder / "x"),
        (folder / "random.safetensors").rename(folder / "weights.safetensors"),
        (folder / "x").rename(folder / "random.safetensors"),
    ),
    "weights of the one before": lambda folder: shutil.copy(
        folder.with_name("step-00000002") / "weights.safetensors", folder
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_out(name: str, broken: RunDir) -> None:
    DAMAGES[name](newest(broken))
    found, passed_over = checkpoint.newest(broken.checkpoints)
    assert found is not None and found.path.name == "step-00000002"
    for problem in passed_over:
        one_paragraph(str(problem))


@pytest.mark.parametrize(
    "name", ["weights.safetensors, a middle bit", "state.json is missing", "a deep manifest", "a file for the folder"]
)
def test_the_run_goes_on_from_the_one_before_and_says_so(name: str, broken: RunDir, whole: RunDir) -> None:
    DAMAGES[name](newest(broken))
    resume(broken.path)
    told = runs.notes(broken)
    assert "passed over" in told and "step-00000004" in told and "going on from step 2" in told
    assert runs.result(broken) == runs.result(whole)
    assert runs.told(broken, "step") == runs.told(whole, "step")


def test_without_a_whole_one_the_run_starts_again(broken: RunDir, whole: RunDir) -> None:
    for folder in broken.checkpoints.glob("step-*"):
        flip(folder / "weights.safetensors", 300)
    resume(broken.path)
    assert "from its beginning" in runs.notes(broken)
    assert runs.result(broken) == runs.result(whole)


def test_best_weights_that_are_damaged_are_not_used_in_silence(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The validation loss only rises, so that the first weights are the best; then these are damaged."""
    found = runs.folder(tmp_path)
    rising = iter(range(1, 100))
    monkeypatch.setattr(loop, "validate", lambda parts: {"loss": float(next(rising))})

    def hear(event: Any) -> None:
        if event.kind == "step" and event.step == runs.STEPS:
            flip(found.checkpoints / "best-00000000" / "weights.safetensors", 300)

    train(runs.run(base, tmp_path), hear=hear)
    assert "the best ones are lost" in runs.notes(found)
    assert (found.model / "adapter_model.safetensors").is_file()


def test_folders_of_other_people_stay(broken: RunDir) -> None:
    """Pruning is for this run's own checkpoints."""
    theirs = broken.checkpoints / "step-by-step-notes"
    theirs.mkdir()
    (theirs / "notes.txt").write_text("theirs")
    resume(broken.path)
    assert (theirs / "notes.txt").read_text() == "theirs"


def test_pickles_beside_a_checkpoint_are_not_read(broken: RunDir, whole: RunDir, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "pytorch_model.bin"):
        trap(newest(broken) / name, canary)
    resume(broken.path)
    assert not canary.exists()
    assert runs.result(broken) == runs.result(whole)


@pytest.mark.parametrize("method", ["full", {"lora": {"rank": 3}}, {"freeze": {"last": 1}}])
def test_a_checkpoint_of_another_method_is_refused(method: Any, base: Path, broken: RunDir, tmp_path: Path) -> None:
    other = train(runs.run(base, tmp_path / "other", method=method))
    shutil.rmtree(newest(broken))
    shutil.copytree(other.folder.checkpoints / "step-00000004", newest(broken))
    with pytest.raises(Problem) as caught:
        resume(broken.path)
    one_paragraph(str(caught.value))
    assert "other weights" in str(caught.value)


CRAFTED: dict[str, Damage] = {
    "another optimizer": lambda folder: state(folder, kind="SGD"),
    "other groups": lambda folder: state(folder, groups=[]),
    "no numbers": lambda folder: (folder / "state.json").write_text('{"loop": {}, "optimizer": {}}'),
    "a loop of other words": lambda folder: (folder / "state.json").write_text(
        json.dumps({**json.loads((folder / "state.json").read_text()), "loop": {"x": 1}})
    ),
    "no optimizer at all": lambda folder: (folder / "optimizer.safetensors").unlink(),
    "weights that are no tensors": lambda folder: (folder / "weights.safetensors").write_bytes(b"\0" * 100),
}


def state(folder: Path, **changes: Any) -> None:
    value = json.loads((folder / "state.json").read_text())
    value["optimizer"] |= changes
    (folder / "state.json").write_text(json.dumps(value))


@pytest.mark.parametrize("name", CRAFTED)
def test_a_checkpoint_that_was_made_up_is_refused(name: str, broken: RunDir) -> None:
    """Its hashes fit, so someone has written it; it is no damage, and it does not become a traceback."""
    folder = newest(broken)
    CRAFTED[name](folder)
    files = {
        file.name: {"size": file.stat().st_size, "sha256": checkpoint._hash(file)}
        for file in folder.iterdir()
        if file.name != "manifest.json"
    }
    manifest(folder, files=files)
    with pytest.raises(Problem) as caught:
        resume(broken.path)
    one_paragraph(str(caught.value))


@pytest.mark.skipif(not LONG, reason="every bit of a manifest and of a state: set TUNESMITH_LONG_ATTACKS=1")
@pytest.mark.parametrize("name", ["manifest.json", "state.json", "weights.safetensors"])
def test_every_byte(name: str, broken: RunDir) -> None:
    file = newest(broken) / name
    before = file.read_bytes()
    missed: list[int] = []
    places = range(len(before)) if len(before) < 5000 else range(0, len(before), 7)
    for place in places:
        flip(file, place, place % 8)
        found, _ = checkpoint.newest(broken.checkpoints)
        if found is None or found.path.name != "step-00000002":
            missed.append(place)
        file.write_bytes(before)
    assert missed == [], f"{len(missed)} of {len(places)}"
