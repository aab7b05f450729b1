"""A step is one sum divided once: how its rows are cut, ordered or recomputed does not change it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from torch import Tensor

from tunesmith.core.plugins import find
from tunesmith.models.forest import Batch
from tunesmith.models.policy import Policy
from tunesmith.train.verb import Result

METHODS: dict[str, Any] = {
    "sft": {"lora": {"start": "gaussian"}},
    "dpo": "lora",
    "kto": "lora",
    "bco": "lora",
    "embed": "lora",
    "pretrain": "full",
    "reward": "lora",
}
SAME = 2e-5
"""Largest difference of weights after several steps of Adam, whose steps here are some 1e-3."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base"))


def short(base: Path, where: Path, objective: str | dict[str, Any], **train: Any) -> Result:
    """A run without clipping, since Adam and clipping both hide a wrong scale of the gradient; figures show it."""
    name = objective if isinstance(objective, str) else next(iter(objective))
    options = {"method": METHODS[name], "optimizer": {"adamw": {"lr": 1e-3, "eps": 1e-3}}}
    return tiny.trained(base, where, objective, **options, train={"clip_norm": None, **train})


def assert_same_run(ours: Result, theirs: Result, tolerance: float = SAME, ties: tuple[str, ...] = ()) -> None:
    """ties: figures that before the first update only rounding decides, since nothing differs from the reference."""
    for number, (one, other) in enumerate(zip(tiny.figures(ours), tiny.figures(theirs), strict=True)):
        told = [{k: v for k, v in figures.items() if number or k not in ties} for figures in (one, other)]
        assert told[0] == pytest.approx(told[1], rel=2e-4, abs=4e-6 if ties else 1e-6)
    assert tiny.difference(tiny.tensors(ours.folder.model), tiny.tensors(theirs.folder.model)) < tolerance


def count_losses(
    objective: str, monkeypatch: pytest.MonkeyPatch, count: Callable[[Batch], int] = lambda batch: len(batch.rows)
) -> list[int]:
    """Note a number of each micro-batch that the objective sees, by default its rows."""
    kind: Any = find("objective", objective)
    seen: list[int] = []
    own = kind.loss

    def loss(self: Any, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append(count(batch))
        return own(self, policy, batch)

    monkeypatch.setattr(kind, "loss", loss)
    return seen


@pytest.mark.parametrize("objective", METHODS)
def test_cutting_a_step_does_not_change_it(
    objective: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 x 8 rows = some x some = 8 x 1, with rows of uneven lengths."""
    seen = count_losses(objective, monkeypatch)
    runs, batches = [], []
    for budget in (4096, 160, 1):
        runs.append(short(base, tmp_path / str(budget), objective, rows_per_step=8, epochs=3, tokens_per_batch=budget))
        batches.append(list(seen))
        seen.clear()
    assert max(batches[0]) == 8
    assert set(batches[2]) == {1}
    assert len(batches[0]) < len(batches[1]) < len(batches[2])
    for cut in runs[1:]:
        assert_same_run(runs[0], cut)
    assert tiny.moved(runs[0], base) > 50 * SAME


SYSTEM = "You are a clerk in a small town who answers whatever people ask, in few words and with good cheer. "


@pytest.mark.parametrize("objective", ["sft", "dpo", "kto", "reward"])
def test_what_rows_share_is_computed_once_and_changes_nothing(
    objective: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = "prompt" if objective == "kto" else "instruction"
    rows = [{**row, asked: SYSTEM + row[asked]} for row in tiny.ROWS[objective]]
    seen = count_losses(objective, monkeypatch, len)
    runs, computed = [], []
    for share in (True, False):
        options: dict[str, Any] = {"method": METHODS[objective], "train": {"share_prefixes": share}}
        runs.append(tiny.trained(base, tmp_path / str(share), objective, rows=rows, **options))
        computed.append(sum(seen))
        seen.clear()
    assert_same_run(*runs, ties=("accuracy",))
    assert computed[0] < 0.8 * computed[1]


@pytest.mark.parametrize("options", [{"method": "mixture_of_depths"}, {"train": {"neftune": 5}}])
def test_nothing_is_shared_where_it_would_change_something(
    options: dict[str, Any], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**row, "instruction": SYSTEM + row["instruction"]} for row in tiny.ROWS["sft"]]
    seen = count_losses("sft", monkeypatch, lambda batch: batch.row_tokens - len(batch))
    tiny.trained(base, tmp_path / "run", "sft", rows=rows, **options)
    assert seen
    assert not any(seen)


@pytest.mark.parametrize("objective", METHODS)
def test_the_order_within_a_step_does_not_matter(objective: str, base: Path, tmp_path: Path) -> None:
    rows = tiny.ROWS[objective]
    draw = random.Random(1)
    other = [row for start in range(0, 12, 4) for row in draw.sample(rows[start : start + 4], 4)]
    assert other != rows
    runs = [
        tiny.trained(
            base, tmp_path / str(number), objective, rows=given, method=METHODS[objective], train={"order": "given"}
        )
        for number, given in enumerate((rows, other))
    ]
    assert_same_run(*runs)


@pytest.mark.parametrize(
    ("family", "method"),
    [("llama", "lora"), ("gemma2", "lora"), ("gpt2", "lora"), ("llama", "full"), ("mamba", "full")],
)
def test_recomputed_activations_change_nothing(family: str, method: str, tmp_path: Path) -> None:
    """Dropout and NEFTune draw the same when a layer runs a second time."""
    if method == "lora":
        chosen: Any = {"lora": {"dropout": 0.2, "start": "gaussian"}}
    else:
        chosen = "full"
    base = tiny.folder(tmp_path / "base", family)
    runs = [
        tiny.trained(base, tmp_path / setting, method=chosen, train={"checkpoint_activations": setting, "neftune": 5})
        for setting in ("on", "off")
    ]
    assert_same_run(*runs, tolerance=1e-6)


MORE = {
    "dpo": [*tiny.PAIRS, *({**row, "chosen": f"{row['chosen']} Yes!"} for row in tiny.PAIRS)],
    "kto": [*tiny.RATED, *({**row, "completion": f"{row['completion']} Yes!"} for row in tiny.RATED)],
}


def against(reference: dict[str, Any], objective: str, base: Path, where: Path, method: Any = "lora") -> Result:
    """A run that is held to a reference, over rows enough for several micro-batches on both sides."""
    return tiny.trained(
        base,
        where,
        {objective: reference},
        method=method,
        optimizer={"adamw": {"lr": 1e-3, "eps": 1e-3}},
        rows=MORE[objective],
        validation={"fraction": 0.3},
        train={"tokens_per_batch": 300},
    )


@pytest.mark.parametrize(
    ("objective", "method"), [("dpo", "lora"), ("dpo", {"lora": {"form": "dora"}}), ("kto", "lora")]
)
def test_a_precomputed_reference_is_the_live_one(objective: str, method: Any, base: Path, tmp_path: Path) -> None:
    runs = [
        against({"reference": reference}, objective, base, tmp_path / reference, method)
        for reference in ("live", "precomputed")
    ]
    assert_same_run(*runs, ties=("accuracy",))
    validated = [tiny.figures(run, "validate") for run in runs]
    assert validated[0]
    for one, other in zip(*validated, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("objective", ["dpo", "kto"])
@pytest.mark.parametrize("reference", ["live", "precomputed"])
def test_another_model_that_is_the_same_is_the_same_reference(
    reference: str, objective: str, base: Path, tmp_path: Path
) -> None:
    own = against({}, objective, base, tmp_path / "own")
    options = {"reference": reference, "reference_model": str(base)}
    assert_same_run(own, against(options, objective, base, tmp_path / "other"), ties=("accuracy",))


def test_another_model_is_a_reference_for_methods_that_cannot_be_switched_off(base: Path, tmp_path: Path) -> None:
    other = tiny.folder(tmp_path / "base", seed=1)
    runs = [
        against({"reference_model": str(model)}, "kto", base, tmp_path / name, "full")
        for name, model in (("same", base), ("other", other))
    ]
    first, different = (tiny.figures(run)[0] for run in runs)
    assert first["loss"] == pytest.approx(0.5, abs=1e-5)
    assert abs(different["loss"] - 0.5) > 1e-3


def test_a_precomputed_reference_lets_any_method_learn_from_pairs(base: Path, tmp_path: Path) -> None:
    result = tiny.trained(
        base,
        tmp_path,
        {"dpo": {"reference": "precomputed"}},
        method="full",
        optimizer={"adamw": {"lr": 1e-3}},
        train={"epochs": 4},
    )
    losses = tiny.losses(result)
    assert losses[0] == pytest.approx(0.693147, abs=1e-4)
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize("objective", METHODS)
def test_recomputing_really_happens(
    objective: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer runs twice in a step; the law above would hold for a setting that does nothing as well."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    own, calls = LlamaDecoderLayer.forward, []

    def forward(self: Any, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(states.requires_grad)
        return own(self, states, *args, **kwargs)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", forward)
    counts = []
    for setting in ("off", "on"):
        tiny.trained(base, tmp_path / setting, objective, train={"checkpoint_activations": setting, "steps": 2})
        counts.append(len(calls))
        calls.clear()
    assert counts[1] == counts[0] + 2 * 3
