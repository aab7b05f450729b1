"""The four lessons of "Reading the curves": one thing differs, the pages show them, and small ones come out as told."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from docpages import REPOSITORY, refresh

from tunesmith import builtin
from tunesmith.cli.closing import ENDED
from tunesmith.core.events import Event, read_events
from tunesmith.core.run import parse_run, read_run
from tunesmith.train.verb import train

RUNS = REPOSITORY / "docs" / "runs"
DIFFERENT = {
    "overfitted": ("data", 0, "limit"),
    "high": ("optimizer", "adamw", "lr"),
    "low": ("optimizer", "adamw", "lr"),
}
STEPS = 24


@pytest.fixture(scope="module")
def lessons() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / "docs"))
        yield importlib.import_module("lessons")


def plain(name: str) -> dict[str, Any]:
    """A lesson's run, every option written out."""
    return read_run(RUNS / f"lesson-{name}.yaml").plain()


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_lesson_differs_from_the_good_run_in_one_thing(name: str) -> None:
    good, other = plain("good"), plain(name)
    assert (good.pop("output"), other.pop("output")) == ("runs/lesson-good", f"runs/lesson-{name}")
    *path, last = DIFFERENT[name]
    ours, theirs = good, other
    for part in path:
        ours, theirs = ours[part], theirs[part]
    assert ours[last] != theirs[last]
    theirs[last] = ours[last]
    assert other == good


def test_the_rows_are_ones_that_ship() -> None:
    run = plain("good")
    for source in (*run["data"], *run["validation"]["data"]):
        folder, _, file = source["path"].partition("/")
        assert folder == "examples" and file in builtin.examples()


@pytest.mark.parametrize("page", refresh.TUTORIALS, ids=refresh.language)
def test_the_tutorials_show_every_lesson(lessons: Any, page: Path) -> None:
    text = page.read_text("utf-8")
    told = dict(re.findall(r"<!-- lessons: (.+?) -->\n(.*?)<!-- /lessons -->", text, re.DOTALL))
    assert set(told) == {"table", *lessons.LESSONS}
    assert len(told["table"].splitlines()) == 2 + len(lessons.LESSONS)
    for name in lessons.LESSONS:
        assert f"![lesson-{name}](../images/lesson-{name}.png)" in told[name]
        assert "lowest validation loss" in told[name]
    assert "kept the weights of step" in told["overfitted"]
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        assert (page.parent / picture).read_bytes().startswith(b"\x89PNG")
    assert "![lessons](../images/lessons.png)" in text
    assert ENDED["stalled"] in text


def curve(lessons: Any, trained: float, *measured: float) -> Any:
    return lessons.Curve(trained, dict(enumerate(measured)))


def good_curves(lessons: Any) -> dict[str, Any]:
    return {
        "good": curve(lessons, 3.0, 6.0, 4.6, 4.5),
        "overfitted": curve(lessons, 0.7, 6.0, 5.5, 6.2),
        "high": curve(lessons, 6.1, 6.0, 15.0, 6.6),
        "low": curve(lessons, 6.0, 6.0, 5.98, 5.97),
    }


def test_lessons_that_come_out_are_taken(lessons: Any) -> None:
    assert list(lessons.not_shown(good_curves(lessons))) == []


@pytest.mark.parametrize(
    ("name", "trained", "measured"),
    [
        ("good", 3.0, (6.0, 5.9, 5.8)),
        ("good", 3.0, (6.0, 4.0, 4.9)),
        ("overfitted", 0.7, (6.0, 5.5, 5.6)),
        ("overfitted", 3.1, (6.0, 5.5, 6.2)),
        ("high", 6.1, (6.0, 15.0, 5.9)),
        ("low", 6.0, (6.0, 5.0, 4.8)),
        ("low", 6.0, (6.0, 6.1, 6.2)),
    ],
)
def test_a_lesson_that_does_not_come_out_is_named(
    lessons: Any, name: str, trained: float, measured: tuple[float, ...]
) -> None:
    found = list(lessons.not_shown(good_curves(lessons) | {name: curve(lessons, trained, *measured)}))
    assert any(sentence.startswith(f"{name}: ") for sentence in found)


def test_a_curve_is_read_from_events(lessons: Any) -> None:
    steps = [Event("step", step=n, values={"loss": 20.0 - n}) for n in range(1, 21)]
    measured = [Event("validate", step=n, values={"loss": loss}) for n, loss in ((0, 9.0), (10, 4.0), (20, 5.0))]
    found = lessons.Curve.of([*steps, *measured])
    assert (found.trained, found.start, found.lowest, found.end) == (0.5, 9.0, 10, 5.0)


def test_the_end_of_a_run_is_shown(lessons: Any) -> None:
    told = "a\n  step 0: validation loss 2\n  step 9: validation loss 1\nkept\n  lowest validation loss  1\nrest\n"
    assert list(lessons.ending(told)) == ["  …", "  step 9: validation loss 1", "kept", "  lowest validation loss  1"]


@pytest.fixture(scope="module")
def small(lessons: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The curves of the four run files with fewer steps and rows, on the base that ships."""
    made: dict[str, Any] = {}
    for name in lessons.LESSONS:
        value = yaml.safe_load((RUNS / f"lesson-{name}.yaml").read_text("utf-8"))
        for source in (*value["data"], *value["validation"]["data"]):
            source["path"] = str(builtin.example(Path(source["path"]).stem))
        if "limit" in value["data"][0]:
            value["data"][0]["limit"] = 8
        value["validation"]["max_rows"] = 12
        value["train"] |= {"steps": STEPS, "validate_every": 6, "checkpoint_every": STEPS, "listeners": []}
        value["output"] = str(tmp_path_factory.mktemp(name) / "run")
        made[name] = lessons.Curve.of(list(read_events(train(parse_run(value, name)).folder.events)))
    return made


def test_a_good_rate_lowers_both_losses(small: dict[str, Any]) -> None:
    good = small["good"]
    assert good.end < good.start - 0.5
    assert good.trained < good.start - 0.5


def test_few_rows_are_learned_by_heart(small: dict[str, Any]) -> None:
    overfitted = small["overfitted"]
    assert overfitted.trained < small["good"].trained - 0.5
    assert overfitted.end > overfitted.measured[overfitted.lowest] + 0.1
    assert overfitted.end > small["good"].end + 0.3


def test_too_high_a_rate_destroys_what_was_known(small: dict[str, Any]) -> None:
    high = small["high"]
    assert high.lowest == 0
    assert max(high.measured.values()) > high.start + 2
    assert high.end > high.start


def test_too_low_a_rate_goes_the_right_way_and_nowhere(small: dict[str, Any]) -> None:
    low, good = small["low"], small["good"]
    assert 0 < low.start - low.end < 0.1 * (good.start - good.end)
