"""A study: its trials, its table and verdict, and carrying it out in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny

from tunesmith.cli.verbs.compare import named
from tunesmith.compare import work
from tunesmith.compare.outcome import Outcome, Quality, Refusal
from tunesmith.compare.picture import picture
from tunesmith.compare.study import Budget, Study, Trial
from tunesmith.compare.table import HEAD, Table
from tunesmith.core.problem import Problem, Problems
from tunesmith.core.run import parse_run
from tunesmith.core.rundir import held

RUN = parse_run({"model": "builtin:seedling", "data": "rows.jsonl", "train": {"seed": 5}}, "test")


def study(tmp_path: Path, methods: tuple[str, ...] = ("lora", "full"), **options: Any) -> Study:
    return Study.of(tmp_path / "study", RUN, tmp_path, methods, **options)


def outcome(trial: Trial, value: float, *, better: str = "higher", trainable: int = 10, memory: int = 5) -> Outcome:
    quality = Quality("accuracy", "percent", better, value)
    return Outcome(trial, quality, 0.5, 7, 700, 3.5, 200.0, memory, 4_000, trainable, 1_000)


class TestStudy:
    def test_trials_are_all_choices_in_order(self, tmp_path: Path) -> None:
        made = study(tmp_path, bases=("a", "b"), rates=(1e-3, 1e-4), seeds=2)
        trials = list(made.trials())
        assert [(t.base, t.method, t.lr, t.seed) for t in trials[:3]] == [
            ("a", "lora", 1e-3, 5),
            ("a", "lora", 1e-3, 6),
            ("a", "lora", 1e-4, 5),
        ]
        assert len(trials) == len({trial.folder.path for trial in trials}) == 16
        assert all(trial.folder.path.is_relative_to(tmp_path / "study" / "trials") for trial in trials)

    def test_a_trial_is_the_run_with_its_choices(self, tmp_path: Path) -> None:
        (trial,) = study(tmp_path, ("lora: {rank: 3}",), rates=(0.5,), bases=("elsewhere",)).trials()
        run = trial.parsed(steps=9)
        assert run.method.spec() == {"lora": {"rank": 3}}
        assert (run.model.path, run.train.steps, run.train.seed) == ("elsewhere", 9, 5)
        assert run.optimizer.model_dump()["lr"] == 0.5
        assert run.output == str(trial.folder.path)

    def test_each_method_has_its_usual_rate(self, tmp_path: Path) -> None:
        lora, full = study(tmp_path).trials()
        assert lora.lr > full.lr

    def test_a_method_may_be_named_with_its_rate(self, tmp_path: Path) -> None:
        made = study(tmp_path, ("lora@0.01", "full"), rates=(1e-3, 1e-4))
        assert [(trial.method, trial.lr) for trial in made.trials()] == [("lora", 0.01), ("full", 1e-3), ("full", 1e-4)]
        with pytest.raises(Problem, match="no learning rate"):
            study(tmp_path, ("lora@fast",))

    def test_faulty_methods_are_refused_together(self, tmp_path: Path) -> None:
        with pytest.raises(Problems) as caught:
            study(tmp_path, ("lora", "lorra", "lora: {rang: 4}"))
        assert "lorra" in str(caught.value)
        assert "rang" in str(caught.value)
        with pytest.raises(Problem, match="names none"):
            study(tmp_path, ())

    def test_another_study_in_its_folder_is_refused(self, tmp_path: Path) -> None:
        study(tmp_path).begin()
        study(tmp_path).begin()
        with pytest.raises(Problem, match="budget, seeds"):
            study(tmp_path, seeds=2, budget=Budget(tokens=9)).begin()

    def test_methods_are_named_with_commas_or_as_yaml(self) -> None:
        assert named(["lora, full", "lora: {targets: [q_proj, k_proj]}"]) == (
            "lora",
            "full",
            "lora: {targets: [q_proj, k_proj]}",
        )


class TestTable:
    def test_seeds_are_put_together_and_the_best_rate_counts(self, tmp_path: Path) -> None:
        made = study(tmp_path, rates=(1e-3, 1e-4), seeds=2)
        values = {("lora", 1e-3): (0.6, 0.7), ("lora", 1e-4): (0.9, 0.8), ("full", 1e-3): (0.5, 0.5)}
        found = [
            outcome(trial, values[trial.method, trial.lr][trial.seed - 5])
            for trial in made.trials()
            if (trial.method, trial.lr) in values
        ]
        table = Table.of(made, found)
        first, second = table.entries
        assert (first.method, first.lr, second.method) == ("lora", 1e-4, "full")
        assert first.mean == pytest.approx(0.85)
        assert first.spread == pytest.approx(0.0707, abs=1e-4)
        *rows, base = table.rows("builtin:seedling")
        assert [len(row) for row in rows] == [len(HEAD)] * 2
        assert rows[0][1] == "85.0 % ± 7.1 %"
        assert base[:2] == ("(base, untouched)", "50.0 %")

    @pytest.mark.parametrize(("better", "best"), [("higher", "full"), ("lower", "lora")])
    def test_what_is_better_depends_on_the_measure(self, tmp_path: Path, better: str, best: str) -> None:
        made = study(tmp_path)
        found = [outcome(trial, {"lora": 0.2, "full": 0.8}[trial.method], better=better) for trial in made.trials()]
        assert Table.of(made, found).entries[0].method == best

    def test_the_verdict_says_what_seeds_cannot_tell_apart(self, tmp_path: Path) -> None:
        made = study(tmp_path, ("lora", "full", "freeze"), seeds=2)
        values = {"full": (0.90, 0.84), "lora": (0.86, 0.85), "freeze": (0.5, 0.6)}
        weights = {"full": 900, "lora": 5, "freeze": 100}
        found = [
            outcome(trial, values[trial.method][trial.seed - 5], trainable=weights[trial.method])
            for trial in made.trials()
        ]
        said = " ".join(Table.of(made, found).verdict())
        assert "full has the best accuracy: 87.0 %" in said
        assert "do not tell it apart from lora." in said
        assert "The least weights of these learn with lora (0.500%)" in said

    def test_one_seed_and_refusals_are_said(self, tmp_path: Path) -> None:
        made = study(tmp_path)
        lora, full = made.trials()
        table = Table.of(made, [outcome(lora, 0.7), Refusal(full, "full: needs 90 GB")])
        said = list(table.verdict())
        assert any("One seed" in sentence for sentence in said)
        assert said[-1] == "Not carried out: full: needs 90 GB"
        assert "full: needs 90 GB" in table.markdown()
        assert json.loads(json.dumps(table.plain()))["rows"][0]["method"] == "lora"

    def test_the_picture_shows_every_base(self, tmp_path: Path) -> None:
        made = study(tmp_path, bases=("a", "b"), seeds=2)
        found = [outcome(trial, 0.5 + 0.1 * trial.seed) for trial in made.trials()]
        assert picture(Table.of(made, found)).startswith(b"\x89PNG")


def unheard(what: str, done: int, total: int) -> None:
    """Nobody listens."""


class TestCarryingOut:
    @pytest.fixture(scope="class")
    @staticmethod
    def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Table]:
        """A study of one method that works and one that does not fit the model, with a budget of tokens."""
        where = tmp_path_factory.mktemp("compared")
        options = {"validation": {"fraction": 0.25}, "train": {"epochs": 9, "warmup": 0}}
        run = tiny.run_of(tiny.folder(where / "base"), where, **options)
        made = Study.of(
            where / "study", run, where, ("lora", "lora: {rank: 4000, targets: q_proj}"), budget=Budget(tokens=300)
        )
        return made, Table.of(made, work.carry_out(made, unheard))

    def test_the_table_has_what_was_measured(self, done: tuple[Study, Table]) -> None:
        _, table = done
        (entry,) = table.entries
        (only,) = entry.trials
        assert entry.method == "lora"
        assert only.quality.name == "perplexity"
        assert only.before is not None
        assert 300 <= only.tokens <= 600
        assert only.memory > 100e6
        assert only.size == (only.trial.folder.model / "adapter_model.safetensors").stat().st_size

    def test_what_does_not_fit_is_listed_with_its_reason(self, done: tuple[Study, Table]) -> None:
        _, table = done
        (refusal,) = table.refused
        assert "4000 is more than" in refusal.reason

    def test_the_same_command_again_does_nothing_twice(
        self, done: tuple[Study, Table], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made, table = done
        monkeypatch.setattr(work, "_command", lambda *words: pytest.fail("a trial was done again"))
        assert Table.of(made, work.carry_out(made, unheard)).plain() == table.plain()

    def test_a_second_start_at_once_is_refused(self, done: tuple[Study, Table]) -> None:
        made, _ = done
        with held(made.folder, Problem("", "busy")), pytest.raises(Problem, match="another process"):
            list(work.carry_out(made, unheard))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_study_that_is_stopped_stops_its_trial(tmp_path: Path, number: int) -> None:
    """The trial under way saves a checkpoint; a study that goes on resumes it there."""
    rows = tiny.rows_file(tmp_path / "rows.jsonl", tiny.CHATS)
    base = tiny.folder(tmp_path / "base")
    run = tmp_path / "run.yaml"
    run.write_text(
        f"model: {{path: {base}, dtype: float32}}\ndata: {rows}\nvalidation: {{fraction: 0.25}}\n"
        "train: {rows_per_step: 1, steps: 4000}\n"
    )
    words = [sys.executable, "-m", "tunesmith", "compare", str(run), "-m", "lora", "-o", str(tmp_path / "study")]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=heard
    )
    wait_for(tmp_path, process)
    os.kill(process.pid, number)
    said = process.communicate()[0].decode()
    assert process.returncode == 130, said
    (trial,) = (tmp_path / "study" / "trials").glob("*/record.json")
    stopped = json.loads(trial.read_text())
    assert stopped["ended"] == "preempted"
    assert 0 < stopped["state"]["step"] < 4000


def heard() -> None:
    """Interrupts are heard, also where the tests themselves run in the background of a shell, which ignores them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    """Until a trial has trained some steps, or its process has ended."""
    while process.poll() is None:
        events = list((tmp_path / "study").glob("trials/*/events.jsonl"))
        if events and events[0].read_text().count('"kind": "step"') > 5:
            return
        time.sleep(0.1)
