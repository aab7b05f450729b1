"""What is not finite is never learned or written; the best weights are the ones that are kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor

from tunesmith.core.events import read_events
from tunesmith.core.plugins import find
from tunesmith.core.problem import Problem
from tunesmith.methods.lora import Lora
from tunesmith.models.forest import Batch
from tunesmith.models.policy import Policy
from tunesmith.train.verb import Result, resume

Spoil = Callable[[Tensor], Tensor]
SPOILS: dict[str, Spoil] = {
    "a loss that is not a number": lambda loss: loss * float("nan"),
    "an endless loss": lambda loss: loss * float("inf"),
    "a gradient that is not a number": lambda loss: loss + (loss * 0).sqrt(),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base"))


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[int, ...]]]:
    """Spoil the loss of every batch that holds this row of the corpus; notes the rows of each batch spoiled."""

    def spoil_row(row: int, spoil: Spoil, objective: str = "sft", times: float = math.inf) -> list[tuple[int, ...]]:
        kind: Any = find("objective", objective)
        own, seen = kind.loss, []

        def loss(self: Any, policy: Policy, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            value, figures = own(self, policy, batch)
            if row not in batch.rows or not torch.is_grad_enabled() or len(seen) >= times:
                return value, figures
            seen.append(batch.rows)
            return spoil(value), figures

        monkeypatch.setattr(kind, "loss", loss)
        return seen

    return spoil_row


def finite(folder: Path) -> bool:
    files = list(folder.rglob("*.safetensors"))
    assert files
    return all(
        bool(torch.isfinite(v).all()) for file in files for v in load_file(file).values() if v.is_floating_point()
    )


def given(base: Path, where: Path, then: str, **train: Any) -> Result:
    """Twelve rows in their order, three steps of four an epoch; the row spoiled below is on line 7, in step 2."""
    settings = {"order": "given", "on_nonfinite": then, "checkpoint_every": 1, "epochs": 2, **train}
    return tiny.trained(base, where, method={"lora": {"start": "gaussian"}}, train=settings)


@pytest.mark.parametrize("kind", SPOILS)
class TestNonFinite:
    def test_stop_names_the_rows_and_keeps_what_was(self, kind: str, base: Path, tmp_path: Path, poison: Any) -> None:
        poison(6, SPOILS[kind])
        with pytest.raises(Problem) as caught:
            given(base, tmp_path, "stop")
        text = str(caught.value)
        assert text.startswith("step 2: ")
        for line in (5, 6, 7, 8):
            assert f"sft.jsonl:{line}" in text
        assert "sft.jsonl:4" not in text
        folder = tmp_path / "run"
        assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000001"]
        assert finite(folder)
        assert not (folder / "model").exists()

    def test_skip_leaves_the_step_out(self, kind: str, base: Path, tmp_path: Path, poison: Any) -> None:
        """The run is the one that never had these steps: what is skipped changes nothing."""
        seen = poison(6, SPOILS[kind])
        result = given(base, tmp_path, "skip")
        assert result.ended == "done"
        assert result.state.skipped == [1, 4]
        assert len(seen) == 2
        told = tiny.events(result, "nonfinite")
        assert [event.values["at"] for event in told] == [1, 4]
        assert all("sft.jsonl:7" in event.values["rows"] for event in told)
        assert [event.step for event in tiny.events(result, "step")] == [1, 3, 4, 6]
        assert finite(result.folder.path)
        assert all(math.isfinite(loss) for loss in tiny.losses(result))

    def test_rollback_goes_on_from_a_whole_checkpoint(self, kind: str, base: Path, tmp_path: Path, poison: Any) -> None:
        """Nothing was changed by the bad step, so going back and leaving it out ends where skipping ends."""
        poison(6, SPOILS[kind])
        back = given(base, tmp_path / "back", "rollback", checkpoint_every=100)
        skipped = given(base, tmp_path / "skip", "skip", checkpoint_every=100)
        assert back.state.skipped == [1, 4]
        assert [event.step for event in tiny.events(back, "step")] == [1, 3, 4, 6]
        assert tiny.losses(back) == tiny.losses(skipped)
        assert tiny.difference(tiny.tensors(back.folder.model), tiny.tensors(skipped.folder.model)) == 0
        assert finite(back.folder.path)


def test_a_stopped_run_can_be_resumed_when_the_fault_is_gone(base: Path, tmp_path: Path, poison: Any) -> None:
    poison(6, SPOILS["a loss that is not a number"], times=1)
    with pytest.raises(Problem):
        given(base, tmp_path / "cut", "stop")
    second = resume(tmp_path / "cut" / "run")
    whole = given(base, tmp_path / "whole", "stop")
    assert tiny.figures(second) == tiny.figures(whole)
    assert tiny.difference(tiny.tensors(second.folder.model), tiny.tensors(whole.folder.model)) == 0


def test_a_step_that_was_left_out_is_validated_no_second_time(base: Path, tmp_path: Path, poison: Any) -> None:
    poison(0, SPOILS["an endless loss"])
    settings = {"order": "given", "on_nonfinite": "skip", "validate_every": 1, "epochs": 1}
    result = tiny.trained(base, tmp_path, validation={"fraction": 0.3}, train=settings)
    steps = [event.step for event in tiny.events(result, "validate")]
    assert sorted(set(steps)) == steps


def test_weights_that_are_not_finite_are_never_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even an optimizer that spoils them: the last whole checkpoint stays the newest."""

    def after_step(self: Lora, model: torch.nn.Module, step: int) -> None:
        if step == 1:
            with torch.no_grad():
                next(weight for weight in model.parameters() if weight.requires_grad).fill_(float("nan"))

    monkeypatch.setattr(Lora, "after_step", after_step)
    with pytest.raises(Problem, match="not finite any more"):
        given(base, tmp_path, "stop")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000001"]
    assert finite(tmp_path / "run")


class TestBest:
    """A run that learns its few rows by heart: the validation loss falls and rises again."""

    SETTINGS = {"epochs": 12, "validate_every": 1, "schedule": "constant", "rows_per_step": 6}

    def overfit(self, base: Path, where: Path, **train: Any) -> Result:
        other = [{"instruction": row["instruction"], "output": row["output"][::-1]} for row in tiny.CHATS]
        where.mkdir(parents=True, exist_ok=True)
        held_out = tiny.rows_file(where / "other.jsonl", other)
        return tiny.trained(
            base,
            where,
            method={"lora": {"rank": 16}},
            optimizer={"adamw": {"lr": 3e-2}},
            validation={"data": [{"path": str(held_out)}]},
            train={**self.SETTINGS, **train},
        )

    def test_the_weights_of_the_lowest_validation_loss_are_kept(self, base: Path, tmp_path: Path) -> None:
        result = self.overfit(base, tmp_path)
        told = {event.step: event.values["loss"] for event in tiny.events(result, "validate")}
        lowest = min(told, key=told.__getitem__)
        assert 0 < lowest < result.state.step
        assert result.state.best == told[lowest]
        assert result.state.best_step == lowest
        short = self.overfit(base, tmp_path / "short", steps=lowest)
        assert tiny.difference(tiny.tensors(result.folder.model), tiny.tensors(short.folder.model)) == 0

    def test_the_last_weights_are_kept_where_they_are_asked_for(self, base: Path, tmp_path: Path) -> None:
        best = self.overfit(base, tmp_path / "best")
        last = self.overfit(base, tmp_path / "last", keep="last")
        assert not list(last.folder.checkpoints.glob("best-*"))
        newest = max(last.folder.checkpoints.glob("step-*"))
        saved = {
            name.replace(".default", ""): value for name, value in load_file(newest / "weights.safetensors").items()
        }
        assert tiny.difference(tiny.tensors(last.folder.model), saved) == 0
        assert tiny.difference(tiny.tensors(last.folder.model), tiny.tensors(best.folder.model)) > 0

    @pytest.mark.parametrize("patience", [1, 3])
    def test_it_stops_when_the_loss_has_not_fallen_for_so_long(self, patience: int, base: Path, tmp_path: Path) -> None:
        result = self.overfit(base, tmp_path, patience=patience)
        told = [event.values["loss"] for event in tiny.events(result, "validate")]
        assert result.ended == "stalled"
        assert len(told) == told.index(min(told)) + 1 + patience
        assert result.state.best == min(told)
        assert result.folder.model.is_dir()
        assert list(read_events(result.folder.events))[-1].values["ended"] == "stalled"

    def test_no_better_than_the_start_keeps_the_start(
        self, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where every step makes it worse, the adapter is the one that changes nothing."""

        def spoil(self: Lora, model: torch.nn.Module, step: int) -> None:
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if "lora_B" in name:
                        weight.normal_(std=3.0)

        monkeypatch.setattr(Lora, "after_step", spoil)
        settings: dict[str, Any] = {"method": "full", "optimizer": {"adamw": {"lr": 1e-2}}, "train": {"epochs": 8}}
        good = tiny.trained(base, tmp_path, output="good", **settings)
        result = tiny.trained(good.folder.path, tmp_path, validation={"fraction": 0.3}, train={"epochs": 1})
        assert result.state.best_step == 0
        ups = [value for name, value in tiny.tensors(result.folder.model).items() if "lora_B" in name]
        assert ups
        assert all(not value.any() for value in ups)
