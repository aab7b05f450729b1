"""How torch's threads wait for each other is set by the command, and left alone where a person has said it."""

from __future__ import annotations

import os

import pytest

from tunesmith.cli.__main__ import SPINS, wait_shortly

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.mark.parametrize(
    ("said", "becomes"),
    [
        ({}, ("PASSIVE", SPINS)),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, ("PASSIVE", None)),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ("ACTIVE", None)),
        ({"GOMP_SPINCOUNT": "7"}, ("PASSIVE", "7")),
    ],
)
def test_threads_wait_shortly_awake_unless_a_person_says_otherwise(
    said: dict[str, str], becomes: tuple[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", {**os.environ, **said})
    wait_shortly()
    assert tuple(os.environ.get(name) for name in NAMES) == becomes
