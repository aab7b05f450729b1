"""Runs that learn from their own answers: what is refused before they begin, what the plan says, that the reward rises,
and how the result is measured on prompts that were not learned from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny

from tunesmith.core.plugins import build
from tunesmith.core.problem import Problem
from tunesmith.core.run import DataSpec
from tunesmith.evaluate.settings import Settings
from tunesmith.evaluate.verb import evaluate
from tunesmith.train.plan import plan
from tunesmith.train.verb import Result, train

ROWS = [{"prompt": row["instruction"], "answer": row["output"]} for row in tiny.CHATS]
KEYED = [{"prompt": row["prompt"], "key": row["answer"]} for row in ROWS]
SMALL = {"answers": 8, "sampling": {"max_tokens": 8}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The share of small letters among an answer's characters."""
    path = tmp_path_factory.mktemp("reward") / "letters.py"
    path.write_text("def reward(answer):\n    return sum(c.islower() for c in answer) / max(1, len(answer))\n", "utf-8")
    return {"python": {"path": str(path)}}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"grpo": {"sampling": {"temperature": 0}}}, r"temperature: is 0\.0.*Set it to 1\.0"),
        ({"grpo": {"sampling": {"top_p": 0.9}}}, r"top_p: is 0\.9, and answers must be drawn from the distribution"),
        ({"grpo": {"answers": 1}}, "answers"),
        ({"grpo": {"engine": "medusa"}}, "engine.*medusa holds weights of its own.*Use local"),
        ({"grpo": {"kl": "plain"}}, "kl: is plain, and with beta 0 there is no such term"),
        ({"grpo": {"reference_model": "x"}}, "reference_model: is set, and with beta 0"),
        ({"grpo": {"rewards": []}}, "rewards"),
        ({"reinforce": {"answers": 1}}, "baseline: is leave_one_out, and one answer"),
        ({"reinforce": {"answers": 1, "baseline": "mean", "redraws": 1}}, "redraws: is set, and one answer alone"),
    ],
)
def test_settings_that_could_have_no_effect_are_refused(value: dict[str, Any], words: str) -> None:
    with pytest.raises(Problem) as caught:
        build("objective", value)
    assert caught.match(words)


@pytest.mark.parametrize(
    ("objective", "options", "words"),
    [
        (
            {"grpo": {"sampling": {"max_tokens": 64}}},
            {"train": {"max_tokens": 64}},
            r"grpo.sampling.max_tokens: is 64, and train.max_tokens leaves 64 for a prompt and its answer",
        ),
        (
            {"grpo": SMALL},
            {"rows": [*KEYED, {"prompt": "why?"}]},
            r"to 1 of 13 prompts \(.*:13: the answer key",
        ),
        ({"grpo": {**SMALL, "beta": 0.1}}, {"method": "full"}, r"grpo.beta: is above 0, and the method full .* cannot"),
    ],
)
def test_what_cannot_work_is_refused_before_a_weight_is_read(
    objective: dict[str, Any], options: dict[str, Any], words: str, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(Problem) as caught:
        train(tiny.run_of(base, tmp_path, objective, **{"rows": ROWS, **options}))
    assert caught.match(words)
    assert not (tmp_path / "run").exists()


def planned(base: Path, where: Path, objective: dict[str, Any], **settings: Any) -> tuple[dict[str, str], list[str]]:
    run = tiny.run_of(base, where, objective, rows=ROWS, train={"rows_per_step": None, "epochs": 1, **settings})
    notes: list[str] = []
    made = plan(run, hear=lambda event: notes.append(event.values["text"]) if event.kind == "note" else None)
    return dict(made.lines), notes


def test_a_plan_reckons_with_the_answers_that_will_be_drawn(base: Path, tmp_path: Path) -> None:
    """12 prompts, 8 answers of at most 8 tokens to each, learned from twice."""
    lines, notes = planned(base, tmp_path, {"grpo": {**SMALL, "epochs": 2}})
    assert "rows_per_step 1: answers are drawn to so many prompts a step" in notes
    prompts = int(lines["tokens of an epoch"].partition(",")[0])
    assert lines["tokens of an epoch"].endswith(f"and at most {12 * 64:,} drawn in answers")
    assert lines["tokens learned from, at most"] == f"{2 * (prompts + 12 * 64):,}"
    assert lines["longest row"].endswith("with its answer")
    assert "drawing answers" in lines
    one, _ = planned(base, tmp_path, {"grpo": {**SMALL, "epochs": 1}}, rows_per_step=4)
    assert one["tokens learned from, at most"] == f"{prompts + 12 * 64:,}"


def test_prompts_that_leave_no_room_are_listed(base: Path, tmp_path: Path) -> None:
    rows = [*ROWS, {"prompt": "why " * 40, "answer": "so"}]
    result = tiny.trained(base, tmp_path, {"grpo": SMALL}, rows=rows, train={"max_tokens": 64, "steps": 1})
    rejects = result.folder.rejects.read_text("utf-8")
    assert "of which an answer may take 8" in rejects
    assert '"line": 13' in rejects or ":13" in rejects


@pytest.fixture(scope="module")
def learned(base: Path, letters: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Short runs that are rewarded for small letters."""
    where = tmp_path_factory.mktemp("learned")
    found: dict[str, Result] = {}
    for name, own in (("grpo", {}), ("reinforce", {"beta": 0.0})):
        objective = {name: {**SMALL, **own, "rewards": letters}}
        settings = {"rows_per_step": 4, "steps": 24, "schedule": "constant", "validate_every": 8}
        found[name] = tiny.trained(
            base,
            where / name,
            objective,
            rows=ROWS,
            method="full",
            optimizer={"adamw": {"lr": 5e-3}},
            train=settings,
            validation={"fraction": 0.25},
        )
    return found


@pytest.mark.parametrize("name", ["grpo", "reinforce"])
def test_the_reward_rises(name: str, learned: dict[str, Result]) -> None:
    steps = tiny.figures(learned[name])
    rewards = [step["reward"] for step in steps]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.25
    measured = tiny.figures(learned[name], "validate")
    assert measured[-1]["reward"] > measured[0]["reward"]
    assert all(one["loss"] == -one["reward"] for one in measured)
    assert learned[name].state.best == min(one["loss"] for one in measured)


def test_a_run_is_measured_by_its_rewards_base_beside_tuned(learned: dict[str, Result]) -> None:
    found = evaluate(str(learned["grpo"].folder.path))
    (section,) = found.sections
    assert section.name == "Rewards of own answers"
    reward = next(row for row in section.table if row.name == "reward")
    kept = min(one["loss"] for one in tiny.figures(learned["grpo"], "validate"))
    assert reward.figures["tuned"].value == pytest.approx(-kept, abs=1e-4)
    assert reward.figures["tuned"].value > reward.figures["base"].value
    assert reward.figures["tuned"].low <= reward.figures["tuned"].value <= reward.figures["tuned"].high
    assert {row.name for row in section.table} >= {"reward", "tokens of an answer", "answers cut at max_tokens"}
    assert section.best
    assert section.best[0].scores["tuned"] >= section.worst[0].scores["tuned"]


def test_a_model_is_measured_on_prompts_where_rewards_are_named(
    base: Path, letters: dict[str, Any], tmp_path: Path
) -> None:
    """Prompts with their keys; chats without their last answer are the same."""
    open_ended = [
        DataSpec(path=str(tiny.rows_file(tmp_path / "open.jsonl", [{"prompt": "why?"}] * 3)), format="prompt")
    ]
    with pytest.raises(Problem, match=r"evaluate.rewards: are none, and answers to prompts are judged by rewards"):
        evaluate(str(base), open_ended)
    settings = Settings.model_validate({"rewards": [letters, "exact"], "sampling": {"max_tokens": 8}})
    found = []
    for name, rows in (("keyed", KEYED), ("chats", tiny.CHATS)):
        data = [DataSpec(path=str(tiny.rows_file(tmp_path / f"{name}.jsonl", rows)))]
        (section,) = evaluate(str(base), data, settings).sections
        found.append({row.name: row.figures["model"] for row in section.table})
    figures = found[0]
    assert figures["reward"].value == pytest.approx(figures["reward python"].value + figures["reward exact"].value)
    assert figures["reward"].n == len(KEYED)
    assert found[1] == figures
