"""Inputs that change under a run, two runs at once, numbers that are none: stopped with names, nothing is spoilt."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_runs as runs
import tiny
import torch
import yaml
from attacks import command, ended, forked, one_paragraph, started
from safetensors.torch import load_file, save_file

from tunesmith.core.problem import Problem
from tunesmith.core.rundir import RunDir
from tunesmith.data.tokenizer import Codec
from tunesmith.models.probe import _small_forest
from tunesmith.train import checkpoint
from tunesmith.train.record import read_record
from tunesmith.train.verb import resume, train

# ── changed inputs ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def halfway(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its data and a run that was stopped after its second step."""
    where = tmp_path_factory.mktemp("halfway")
    shutil.copytree(base, where / "base")

    def hear(event: Any) -> None:
        if event.kind == "step" and event.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(runs.run(where / "base", where), hear=hear).ended == "preempted"
    return where


def json_file(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def run_yaml(where: Path, section: str, **changes: Any) -> None:
    file = where / "run" / "run.yaml"
    value = yaml.safe_load(file.read_text())
    value[section] |= changes
    file.write_text(yaml.safe_dump(value))


def weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] += 0.01
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        file.write_text(file.read_text() + "{# changed #}")
    else:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        json_file(folder / "tokenizer_config.json", chat_template=config["chat_template"] + "{# changed #}")


def rows(where: Path, change: Callable[[list[str]], list[str]]) -> None:
    file = where / "sft.jsonl"
    file.write_text("".join(change(file.read_text().splitlines(keepends=True))))


CHANGES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "a row more": (lambda where: rows(where, lambda lines: [*lines, lines[0].replace("rain", "snow")]), ("data",)),
    "a row less": (lambda where: rows(where, lambda lines: lines[:-1]), ("data",)),
    "a letter": (lambda where: rows(where, lambda lines: [lines[0].replace("weather", "feather"), *lines[1:]]), ()),
    "the order": (lambda where: rows(where, lambda lines: lines[::-1]), ("data",)),
    "weights of the base": (lambda where: weights(where / "base"), ("weights",)),
    "configuration of the base": (
        lambda where: json_file(where / "base" / "config.json", rms_norm_eps=0.1),
        ("weights",),
    ),
    "template": (lambda where: template(where / "base"), ("template", "tokenizer")),
    "options": (lambda where: run_yaml(where, "train", seed=7), ("options",)),
    "rate": (lambda where: run_yaml(where, "optimizer", adamw={"lr": 0.5}), ("options",)),
}


@pytest.fixture
def changed(halfway: Path, tmp_path: Path) -> Path:
    """A copy whose run names the copy's own files."""
    where = Path(shutil.copytree(halfway, tmp_path / "copy"))
    shutil.rmtree(where / "run" / "checkpoints", ignore_errors=True)
    shutil.rmtree(where / "run")

    def hear(event: Any) -> None:
        if event.kind == "step" and event.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    train(runs.run(where / "base", where), hear=hear)
    return where


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_input_stops_a_resume_by_name(name: str, changed: Path) -> None:
    change, told = CHANGES[name]
    change(changed)
    with pytest.raises(Problem) as caught:
        resume(changed / "run")
    text = str(caught.value)
    one_paragraph(text)
    names = [word.split()[0] for word in text.split("--accept ")[1:]]
    assert {name.strip(".") for name in names} >= set(told), text
    assert resume(changed / "run", accept=tuple(name.strip(".") for name in names)).ended == "done"


def test_what_was_accepted_once_is_the_run_s_own_from_then_on(changed: Path) -> None:
    run_yaml(changed, "train", clip_norm=0.5)

    def hear(event: Any) -> None:
        if event.kind == "step" and event.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    assert resume(changed / "run", accept=("options",), hear=hear).ended == "preempted"
    assert resume(changed / "run").ended == "done"


def test_accepting_one_change_does_not_accept_another(changed: Path) -> None:
    run_yaml(changed, "train", seed=7)
    weights(changed / "base")
    with pytest.raises(Problem, match="weights") as caught:
        resume(changed / "run", accept=("options",))
    assert "--accept options" not in str(caught.value)


def test_a_name_that_is_none_cannot_be_accepted(changed: Path) -> None:
    end = forked(command("resume", changed / "run", "--accept", "wieghts"), changed / "log")
    assert end.status == 2 and "weights" in end.text, end.text


MISSING: dict[str, Callable[[Path], object]] = {
    "the data": lambda where: (where / "sft.jsonl").unlink(),
    "the base": lambda where: shutil.rmtree(where / "base"),
    "the run file": lambda where: (where / "run" / "run.yaml").unlink(),
    "the record": lambda where: (where / "run" / "record.json").unlink(),
    "a whole record": lambda where: (where / "run" / "record.json").write_text("{"),
    "an object in the record": lambda where: (where / "run" / "record.json").write_text("[]"),
    "a whole run file": lambda where: (where / "run" / "run.yaml").write_text("model: ["),
    "a whole line of events": lambda where: (where / "run" / "events.jsonl").write_text("{\n{}\n"),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_run_that_lacks_something_says_what(name: str, changed: Path) -> None:
    MISSING[name](changed)
    end = forked(command("resume", changed / "run"), changed / "log")
    assert end.status == 2, end.text
    assert "Traceback" not in end.text


def test_a_moved_run_goes_on(changed: Path) -> None:
    (changed / "run").rename(changed / "moved")
    assert resume(changed / "moved").ended == "done"
    assert (changed / "moved" / "model").is_dir()


# ── two at once ───────────────────────────────────────────────────────────────────────────────────────────────────


def waiting(read: int, write: int, step: int) -> Callable[[Any], None]:
    """A listener that tells another process that a step is done, and waits for its word."""

    def hear(event: Any) -> None:
        if event.kind == "step" and event.step == step:
            os.write(write, b"x")
            os.read(read, 1)

    return hear


@pytest.mark.parametrize("second", ["train", "resume"])
def test_a_second_start_of_a_run_is_refused(second: str, base: Path, tmp_path: Path) -> None:
    wanted = runs.run(base, tmp_path)
    file = runs.run_file(wanted, tmp_path / "run.yaml")
    found = runs.folder(tmp_path)
    (told, tell), (go, start) = os.pipe(), os.pipe()
    child = started(lambda: train(wanted, hear=waiting(go, tell, 2)), tmp_path / "first.log")
    os.read(told, 1)
    end = forked(command(second, file if second == "train" else found.path), tmp_path / "log")
    os.write(start, b"x")
    assert end.status == 2, end.text
    assert "Traceback" not in end.text
    assert ended(child, tmp_path / "first.log").status == 0
    assert read_record(found)["ended"] == "done"


def test_two_starts_at_the_same_moment_make_one_run(base: Path, tmp_path: Path) -> None:
    """Both have found the folder free before either of them locks it."""
    from tunesmith.train import verb

    wanted = runs.run(base, tmp_path)
    (told, tell), (go, start) = os.pipe(), os.pipe()
    made = verb._new_folder

    def slow(*args: Any) -> RunDir:
        folder = made(*args)
        os.write(tell, b"x")
        os.read(go, 1)
        return folder

    def act() -> None:
        verb._new_folder = slow
        train(wanted)

    children = [started(act, tmp_path / f"{name}.log") for name in "ab"]
    for _ in children:
        os.read(told, 1)
    os.write(start, b"xx")
    ends = [ended(child, tmp_path / f"{name}.log") for child, name in zip(children, "ab", strict=True)]
    assert sorted(end.status for end in ends) == [0, 2], [end.text for end in ends]
    assert not any("Traceback" in end.text for end in ends)
    assert read_record(runs.folder(tmp_path))["ended"] == "done"


def test_two_builders_of_one_cache_do_not_disturb_each_other(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith.data import build

    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    wanted = [runs.run(base, tmp_path, output=name) for name in "ab"]
    (told, tell), (go, start) = os.pipe(), os.pipe()
    publish = build._publish

    def slow(*args: Any) -> None:
        os.write(tell, b"x")
        os.read(go, 1)
        publish(*args)

    def act(number: int) -> None:
        build._publish = slow
        train(wanted[number])

    children = [started(lambda number=number: act(number), tmp_path / f"{number}.log") for number in range(2)]
    for _ in children:
        os.read(told, 1)
    os.write(start, b"xx")
    ends = [ended(child, tmp_path / f"{number}.log") for number, child in enumerate(children)]
    assert [end.status for end in ends] == [0, 0], [end.text for end in ends]
    first, second = (runs.result(RunDir(tmp_path / name)) for name in "ab")
    assert first == second


@pytest.mark.parametrize("damage", ["cut", "flipped", "no manifest", "a file in its place"])
def test_a_damaged_cache_is_built_again(
    damage: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    train(runs.run(base, tmp_path, output="a"))
    store = next((tmp_path / "cache" / "tokens").iterdir())
    if damage == "cut":
        os.truncate(store / "tokens.i32", 40)
    elif damage == "flipped":
        content = bytearray((store / "tokens.i32").read_bytes())
        content[8] ^= 1
        (store / "tokens.i32").write_bytes(bytes(content))
    elif damage == "no manifest":
        (store / "manifest.json").unlink()
    else:
        shutil.rmtree(store)
        store.write_text("")
    train(runs.run(base, tmp_path, output="b"))
    assert runs.result(RunDir(tmp_path / "a")) == runs.result(RunDir(tmp_path / "b"))


# ── numbers that are none ─────────────────────────────────────────────────────────────────────────────────────────


def finite(found: RunDir) -> None:
    """No number anywhere in what a run saved is not finite."""
    for file in [*found.path.rglob("*.safetensors")]:
        for name, tensor in load_file(file).items():
            assert not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()), (file, name)


def poisoned(base: Path, where: Path, value: float) -> Path:
    folder = Path(shutil.copytree(base, where / "poisoned"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_a_poisoned_base_stops_the_run_with_its_rows(value: float, method: str, base: Path, tmp_path: Path) -> None:
    file = runs.run_file(runs.run(poisoned(base, tmp_path, value), tmp_path, method=method), tmp_path / "run.yaml")
    end = forked(command("train", file), tmp_path / "log")
    assert end.status == 2, end.text
    assert "Traceback" not in end.text
    assert "sft.jsonl:" in end.text or "not finite" in end.text
    found = runs.folder(tmp_path)
    assert not found.model.exists()
    finite(found) if method == "lora" else None


@pytest.mark.parametrize("method", ["full", {"lora": {"rank": 2}}])
@pytest.mark.parametrize("lr", [1e4, 1e20, 1e38])
def test_a_huge_rate_never_leaves_weights_that_are_not_finite(
    lr: float, method: Any, base: Path, tmp_path: Path
) -> None:
    wanted = runs.run(base, tmp_path, method=method, optimizer={"adamw": {"lr": lr}}, train={"schedule": "constant"})
    end = forked(command("train", runs.run_file(wanted, tmp_path / "run.yaml")), tmp_path / "log")
    assert end.status in (0, 2), end.text
    assert "Traceback" not in end.text
    finite(runs.folder(tmp_path))
    for folder in runs.folder(tmp_path).checkpoints.glob("*"):
        checkpoint.read(folder)


@pytest.fixture
def spoilt(base: Path, tmp_path: Path) -> tuple[Path, int]:
    """A model whose embedding of one token is not a number, and the line of the only row that has this token."""
    codec = Codec.load(base)
    ids = [set(codec.encode_text(f"{row['instruction']} {row['output']}")) for row in tiny.CHATS]
    probed = set(_small_forest(codec.vocab_size).tokens.tolist()) | set(codec.special_ids.values())
    others = [set().union(*ids[:at], *ids[at + 1 :]) for at in range(len(ids))]
    line, alone = next((at + 1, own - others[at] - probed) for at, own in enumerate(ids) if own - others[at] - probed)
    folder = Path(shutil.copytree(base, tmp_path / "spoilt"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][min(alone)] = math.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, line


SPOILT = {"rows_per_step": 2, "order": "given", "steps": None, "epochs": 1}


def test_the_rows_of_a_bad_step_are_named(spoilt: tuple[Path, int], tmp_path: Path) -> None:
    wanted = runs.run(spoilt[0], tmp_path, train=SPOILT, validation={"fraction": 0})
    with pytest.raises(Problem) as caught:
        train(wanted)
    one_paragraph(str(caught.value))
    lines = re.findall(r"sft\.jsonl:(\d+)", str(caught.value))
    assert len(lines) == 2 and str(spoilt[1]) in lines
    finite(runs.folder(tmp_path))


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_bad_step_is_left_out_and_the_rest_is_learned(
    policy: str, spoilt: tuple[Path, int], base: Path, tmp_path: Path
) -> None:
    options = {**SPOILT, "on_nonfinite": policy}
    result = train(runs.run(spoilt[0], tmp_path, train=options, validation={"fraction": 0}))
    assert result.ended == "done"
    assert len(result.state.skipped) == 1
    finite(result.folder)
    assert len(runs.told(result.folder, "step")) == len(tiny.CHATS) // 2 - 1
    named = [event["rows"] for event in runs.told(result.folder, "nonfinite")]
    assert len(named) == 1 and f"sft.jsonl:{spoilt[1]}" in named[0]
