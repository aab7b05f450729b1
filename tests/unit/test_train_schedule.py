"""The learning rate over a run."""

from __future__ import annotations

import pytest

from tunesmith.core.run import TrainSpec
from tunesmith.train.schedule import factor


def rates(total: int, **options: object) -> list[float]:
    spec = TrainSpec.model_validate({"warmup": 2, **options})
    return [factor(step, total, spec) for step in range(total)]


def test_warm_up_never_starts_at_nothing() -> None:
    assert rates(10, schedule="constant") == [0.5, *[1.0] * 9]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_what_falls_falls_from_the_top_to_the_last_rate(schedule: str) -> None:
    found = rates(12, schedule=schedule, final_lr=0.1)[2:]
    assert found[0] == 1.0
    assert found == sorted(found, reverse=True)
    assert 0.1 < found[-1] < 0.3


def test_wsd_stays_up_until_its_cool_down() -> None:
    assert rates(10, schedule="wsd", cooldown=4) == [0.5, *[1.0] * 6, 0.75, 0.5, 0.25]
    assert rates(10, schedule="wsd", cooldown=0.4) == rates(10, schedule="wsd", cooldown=4)


def test_a_longer_wsd_begins_with_the_same_rates() -> None:
    assert rates(20, schedule="wsd", cooldown=4)[:7] == rates(10, schedule="wsd", cooldown=4)[:7]


def test_a_cool_down_never_reaches_into_the_warm_up() -> None:
    assert rates(4, schedule="wsd", cooldown=9)[:2] == [0.5, 1.0]
