"""2 ranks == 1 rank, and only one of them writes; processes as torchrun starts them, on the CPU through gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from tunesmith.core.rundir import RunDir
from tunesmith.train.loop import State
from tunesmith.train.record import read_record
from tunesmith.train.verb import Result

SCRIPT = """\
import json, os, sys
from pathlib import Path
import torch
from tunesmith.core.run import read_run
from tunesmith.train.verb import resume, train

torch.set_num_threads(1)
rank = int(os.environ["RANK"])
written, told = [], []
sys.addaudithook(lambda name, args: written.append(str(args[0])) if name == "open" and "w" in str(args[1]) else None)

def hears(stop_at):
    def hear(event):
        told.append(event.kind)
        if event.kind == "step" and event.step == stop_at:
            os.kill(os.getpid(), 15)
    return hear

said = []
for verb, path, stop_at in json.loads(Path(sys.argv[1]).read_text()):
    written.clear(); told.clear()
    act = (lambda p, hear: train(read_run(p), hear=hear)) if verb == "train" else (lambda p, hear: resume(p, hear=hear))
    result = act(Path(path), hears(stop_at))
    inside = [name for name in written if name.startswith(str(result.folder.path))]
    said.append([result.ended, len(inside), len(told)])
Path(f"{sys.argv[1]}.{rank}").write_text(json.dumps(said))
"""
CASES: dict[str, dict[str, Any]] = {
    "sft": {"method": {"lora": {"start": "gaussian"}}, "validation": {"fraction": 0.2}},
    "dpo": {"method": "lora", "train": {"rows_per_step": 3}},
    "kto": {"method": "lora", "optimizer": {"adamw": {"lr": 1e-2}}, "train": {"rows_per_step": 3}},
    "bco": {"method": "lora", "optimizer": {"adamw": {"lr": 1e-2}}, "train": {"rows_per_step": 1, "steps": 5}},
    "embed": {"method": "lora", "train": {"rows_per_step": 3}},
    "reward": {"method": {"freeze": {"last": 1}}},
    "pretrain": {
        "method": "full",
        "optimizer": {"lisa": {"layers": 1, "every": 1, "lr": 1e-3}},
        "train": {"rows_per_step": 1, "steps": 5},
    },
}
"""With steps of one row a rank has nothing to do; with three the shares are uneven; layers in turn get no gradient."""
NOISY: dict[str, Any] = {"method": {"lora": {"dropout": 0.1}}, "train": {"tokens_per_batch": 80, "neftune": 5}}


@dataclass(frozen=True)
class Both:
    """What two ranks did: the runs by name, and for each job and rank how it ended and how much it wrote and heard."""

    where: Path
    base: Path
    said: list[list[tuple[str, int, int]]]

    def result(self, name: str) -> Result:
        folder = RunDir(self.where / name)
        return Result(folder, "done", State.of(read_record(folder)["state"]))


def options(objective: str) -> dict[str, Any]:
    own = CASES[objective]
    return {**own, "train": {"tokens_per_batch": 1, "clip_norm": 0.5, **own.get("train", {})}}


def jobs(base: Path, where: Path) -> list[tuple[str, str, int]]:
    """A run of each objective; one that goes through; one that is asked to stop, on one rank only, and goes on."""
    out = []
    for name in (*CASES, "whole", "cut"):
        objective, own = (name, options(name)) if name in CASES else ("sft", dict(NOISY))
        run = tiny.run_of(base, where, objective, **own, output=name)
        (where / f"{name}.yaml").write_text(yaml.safe_dump(run.plain()), "utf-8")
        out.append(("train", str(where / f"{name}.yaml"), 2 if name == "cut" else -1))
    return [*out, ("resume", str(where / "cut"), -1)]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """All jobs in one pair of processes."""
    where = tmp_path_factory.mktemp("ranks")
    base = tiny.folder(where / "base")
    (where / "script.py").write_text(SCRIPT, "utf-8")
    (where / "jobs").write_text(json.dumps(jobs(base, where)), "utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*command, str(where / "script.py"), str(where / "jobs")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = [json.loads((where / f"jobs.{rank}").read_text("utf-8")) for rank in range(2)]
    return Both(where, base, said)


@pytest.mark.parametrize("objective", CASES)
def test_two_ranks_are_one(objective: str, both: Both, tmp_path: Path) -> None:
    alone = tiny.trained(both.base, tmp_path, objective, **options(objective))
    ranks = both.result(objective)
    for kind in ("step", "validate"):
        for one, other in zip(tiny.figures(alone, kind), tiny.figures(ranks, kind), strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=4e-6)
    assert tiny.difference(tiny.tensors(alone.folder.model), tiny.tensors(ranks.folder.model)) < 1e-5


def test_one_rank_writes_and_tells(both: Both) -> None:
    for ended, written, told in both.said[0]:
        assert ended in ("done", "preempted")
        assert written > 3
        assert told > 3
    assert [ended for ended, _, _ in both.said[1]] == [ended for ended, _, _ in both.said[0]]
    assert all((written, told) == (0, 0) for _, written, told in both.said[1])


def test_two_ranks_stop_together_and_go_on(both: Both) -> None:
    """A signal that reached one rank stopped both after the same step; resumed they end where they would have."""
    assert [ended for ended, _, _ in both.said[0]] == ["done"] * (len(CASES) + 1) + ["preempted", "done"]
    whole, cut = both.result("whole"), both.result("cut")
    assert tiny.figures(whole) == tiny.figures(cut)
    assert tiny.difference(tiny.tensors(whole.folder.model), tiny.tensors(cut.folder.model)) == 0
