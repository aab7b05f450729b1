"""Short loss curves that stay as they are: a change of them is a change of what training does.

Renew them, after a change that was meant, with

    PYTHONPATH=src:tests python tests/golden/test_golden_curves.py

and say in the commit why they moved.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import tiny

CURVES = Path(__file__).parent / "curves.json"
TOLERANCE = 1e-4
"""Products of floats come out in another order on another processor; a changed formula moves far more."""
STEPS = 10
RUNS: dict[str, dict[str, Any]] = {
    "pretrain": {"method": "full", "optimizer": {"adamw": {"lr": 2e-3, "weight_decay": 0.01}}},
    "sft": {"method": {"lora": {"rank": 4}}, "optimizer": {"adamw": {"lr": 5e-3}}},
    "dpo": {"method": {"lora": {"rank": 4}}, "optimizer": {"adamw": {"lr": 5e-3}}},
    "reward": {"method": {"freeze": {"last": 1}}, "optimizer": {"adamw": {"lr": 2e-3}}},
}


def curve(objective: str, where: Path) -> list[float]:
    """The losses of ten steps on a tiny model."""
    base = tiny.folder(where / "base", "qwen3")
    train = {"steps": STEPS, "epochs": 20, "warmup": 2, "tokens_per_batch": 150}
    return tiny.losses(tiny.trained(base, where, objective, **RUNS[objective], train=train))


@pytest.mark.parametrize("objective", RUNS)
def test_the_curve_is_the_one_that_is_kept(objective: str, tmp_path: Path) -> None:
    kept = json.loads(CURVES.read_text("utf-8"))[objective]
    assert len(kept) == STEPS
    assert curve(objective, tmp_path) == pytest.approx(kept, abs=TOLERANCE)


def renew() -> None:
    """Write the curves anew."""
    found = {}
    for objective in RUNS:
        with tempfile.TemporaryDirectory() as where:
            found[objective] = [round(loss, 6) for loss in curve(objective, Path(where))]
    CURVES.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    renew()
